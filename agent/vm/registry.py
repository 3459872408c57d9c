"""Which VMs this host has, in memory and on record."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import UUID

from agent.vm.process import last_words
from agent.vm.unreadable import UnreadableVm
from agent.vm.vm import Vm
from agent.vm.vm_records import read_vm
from common.errors import NotFound, WrongState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.store import Store
    from agent.vm.definition import Definition
    from agent.vm.running import Running


class Registry:
    """The VMs by UUID and name; both are unique on a host."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._vms: dict[UUID, Vm] = {}
        self._unreadable: dict[UUID, UnreadableVm] = {}

    def load(self) -> Iterator[tuple[Vm, Running | None]]:
        """Read every VM on record, with what it ran as; rests of removed VMs are swept.

        What cannot be read is left as it is on disk, and stays taken.
        """
        for uuid in list(self._store.vm_uuids()):
            loaded = self.load_one(uuid)
            if loaded is not None:
                yield loaded

    def load_one(self, uuid: UUID) -> tuple[Vm, Running | None] | None:
        """Read a VM that is on record, with what it ran as; None where there is nothing, or nothing that could be served."""
        directory = self._store.vm(uuid)
        self._unreadable.pop(uuid, None)
        read = read_vm(directory, uuid)
        known = read.persistent if read.running is None else read.running.definition
        if known is None and read.problems:
            self._unreadable[uuid] = UnreadableVm(uuid, read.name or str(uuid), directory, read.problems, read.process)
            return None
        if known is None:
            directory.remove()
            return None
        vm = self._vms[uuid] = Vm(known, directory)
        vm.persistent, vm.wishes, vm.live = read.persistent, read.wishes, read.live
        vm.problems, vm.has_unread_definition, vm.has_unread_wishes = (
            read.problems,
            read.has_unread_definition,
            read.has_unread_wishes,
        )
        return vm, read.running

    def unreadable(self) -> list[UnreadableVm]:
        """List the VMs that cannot be served, by name."""
        return sorted(self._unreadable.values(), key=lambda one: (one.name, str(one.uuid)))

    def find_unreadable(self, name_or_uuid: str) -> UnreadableVm | None:
        """Find a VM that cannot be served, by UUID or name."""
        return next((one for one in self._unreadable.values() if name_or_uuid in {one.name, str(one.uuid)}), None)

    def remove_unreadable(self, one: UnreadableVm) -> None:
        """Remove a VM that cannot be served, and all of its files."""
        self._unreadable.pop(one.uuid, None)
        one.directory.remove()

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
            WrongState: its records cannot be read.
        """
        with suppress(ValueError):
            by_uuid = self.find(UUID(name_or_uuid))
            if by_uuid is not None:
                return by_uuid
        found = self.find_named(name_or_uuid)
        if found is None and (unread := self.find_unreadable(name_or_uuid)) is not None:
            raise unread.refusal()
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
        for one in (self.find_unreadable(definition.name), self.find_unreadable(str(definition.uuid))):
            if one is not None:
                raise one.refusal()

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
