"""Which VMs this host has, in memory and on record."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from agent.vm.definition import Definition
from agent.vm.process import last_words
from agent.vm.running import Running
from agent.vm.vm import Vm
from agent.vm.wishes import Live, Wishes
from common.errors import FerryError, NotFound, WrongState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.store import Store

_log = structlog.get_logger()


class Registry:
    """The VMs by UUID and name; both are unique on a host."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._vms: dict[UUID, Vm] = {}

    def load(self) -> Iterator[tuple[Vm, Running | None]]:
        """Read every VM on record, with what it ran as; rests of removed VMs are swept.

        A VM whose records cannot be read is left alone on disk, and told in the log.
        """
        for uuid in list(self._store.vm_uuids()):
            directory = self._store.vm(uuid)
            try:
                definition = directory.find_definition()
                running = directory.find_running()
                persistent = None if definition is None else Definition.from_record(definition)
                ran_as = None if running is None else Running.from_record(running)
                wishes, live = Wishes.from_record(directory.find_wishes()), Live.from_record(directory.find_live())
                _check_uuid(uuid, persistent, ran_as)
            except FerryError as error:
                _log.error("vm cannot be read", uuid=str(uuid), error=error.text)
                continue
            known = persistent if ran_as is None else ran_as.definition
            if known is None:
                directory.remove()
                continue
            vm = self._vms[uuid] = Vm(known, directory)
            vm.persistent, vm.wishes, vm.live = persistent, wishes, live
            yield vm, ran_as

    def find(self, uuid: UUID) -> Vm | None:
        """Find a VM by UUID."""
        return self._vms.get(uuid)

    def find_named(self, name: str) -> Vm | None:
        """Find a VM by name."""
        return next((vm for vm in self._vms.values() if vm.name == name), None)

    def get(self, name_or_uuid: str) -> Vm:
        """Get a VM by UUID or name.

        Raises:
            NotFound: there is none.
        """
        with suppress(ValueError):
            by_uuid = self.find(UUID(name_or_uuid))
            if by_uuid is not None:
                return by_uuid
        found = self.find_named(name_or_uuid)
        if found is None:
            raise NotFound(f"VM {name_or_uuid[:80]} does not exist on this host", reason="VM_NOT_FOUND", vm=name_or_uuid)
        return found

    def all(self) -> list[Vm]:
        """List the VMs by name."""
        return sorted(self._vms.values(), key=lambda vm: (vm.name, str(vm.uuid)))

    def check_absent(self, definition: Definition) -> None:
        """Require that neither name nor UUID is taken.

        Raises:
            WrongState: one is.
        """
        for vm, what in (
            (self.find_named(definition.name), f"name {definition.name}"),
            (self.find(definition.uuid), f"UUID {definition.uuid}"),
        ):
            if vm is not None:
                raise WrongState(
                    f"{what} is taken on this host by VM {vm.name} ({vm.uuid})",
                    reason="VM_EXISTS",
                    name=definition.name,
                    uuid=definition.uuid,
                )

    def check_free(self, definition: Definition) -> None:
        """Require that name and UUID are free, or both of one VM.

        Raises:
            WrongState: they are not.
        """
        same = self.find(definition.uuid)
        if same is None or same.name != definition.name or same.is_incoming:
            self.check_absent(definition)

    def add(self, definition: Definition) -> Vm:
        """Reserve name and UUID of a transient VM.

        Raises:
            WrongState: one is taken.
        """
        self.check_absent(definition)
        vm = self._vms[definition.uuid] = Vm(definition, self._store.vm(definition.uuid))
        return vm

    def take_in(self, definition: Definition) -> Vm:
        """Reserve name and UUID for a guest that comes from elsewhere; its own, where the definition stayed here when it left.

        Raises:
            WrongState: one is taken.
        """
        return self._find_left(definition) or self.add(definition)

    def check_room(self, definition: Definition) -> None:
        """Require that `take_in` would find name and UUID free.

        Raises:
            WrongState: one is taken.
        """
        if self._find_left(definition) is None:
            self.check_absent(definition)

    def _find_left(self, definition: Definition) -> Vm | None:
        """Find the VM whose definition stayed here when its guest left."""
        known = self.find(definition.uuid)
        is_left = known is not None and known.name == definition.name and known.wishes.moved_to and known.running is None
        return known if is_left else None

    def save(self, definition: Definition) -> Vm:
        """Write a persistent definition, of a new VM or over an old one.

        Raises:
            WrongState: name or UUID were taken meanwhile.
        """
        self.check_free(definition)
        vm = self.find(definition.uuid) or Vm(definition, self._store.vm(definition.uuid))
        vm.directory.save_definition(definition.to_record())
        self._vms[definition.uuid] = vm
        return vm

    def remove(self, vm: Vm) -> None:
        """Remove a VM and all of its files."""
        self._vms.pop(vm.uuid, None)
        vm.directory.remove()

    def last_words(self, vm: Vm) -> str:
        """Read the last message of a VM's QEMU, running or ended."""
        if vm.running is not None:
            return last_words(vm.directory.log_path, vm.running.log_offset_bytes)
        return "" if vm.last_end is None else vm.last_end.words


def _check_uuid(uuid: UUID, persistent: Definition | None, running: Running | None) -> None:
    for definition in (persistent, None if running is None else running.definition):
        if definition is not None and definition.uuid != uuid:
            raise WrongState(f"directory {uuid} holds records of VM {definition.uuid}", reason="RECORD_BROKEN")
