"""What this host has for definitions: the paths that its operator allows, files, memory, and QEMU."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from agent.vm.bridges import check_bridges
from agent.vm.host_checks import check_below, check_files, check_huge_pages, check_memory, check_opened, check_paths, find_emulator
from agent.vm.image_files import files_of, named_below
from agent.vm.paths import confine
from agent.vm.pinning import pin
from agent.vm.probes import check_cpu_model, choose_accelerator
from agent.vm.spelling import spell
from common.errors import WrongState
from common.findings import Findings

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

    from agent.qemu.binary import BinaryFacts
    from agent.qemu.commands import Qemu
    from agent.vm.definition import Definition
    from agent.vm.probes import Probes
    from agent.vm.settings import VmSettings
    from agent.vm.stored import Stored


class Premises:
    """Answers whether a definition can be built here, and as what. It knows no VM and changes nothing."""

    def __init__(self, settings: VmSettings, probes: Probes) -> None:
        self._settings = settings
        self._probes = probes

    def check_paths(self, definition: Definition) -> None:
        """Refuse files outside of the configured directories; they need not exist.

        Raises:
            InvalidRequest: a path lies outside.
        """
        check_paths(definition, self._settings.roots)

    def check_below(self, definition: Definition) -> None:
        """Refuse, where directories are configured, images whose headers lead outside of them.

        Raises:
            InvalidRequest, WrongState: one does, or cannot be read.
        """
        if self._settings.roots:
            check_below(named_below(definition), self._settings.roots, Findings())

    def check_image(self, path: str, image_format: str) -> None:
        """Refuse an image that is going to be opened and whose header leads to what is not here, or may not be used.

        Raises:
            InvalidRequest, WrongState: it does.
        """
        check_below(files_of(path, image_format)[1:], self._settings.roots, Findings())

    async def check_opened(self, qemu: Qemu) -> None:
        """Require, where directories are configured, that a QEMU has opened images in these only.

        Raises:
            InvalidRequest: it has another one open.
        """
        if self._settings.roots:
            check_opened(await qemu.block.query_images(), self._settings.roots)

    def check_files(self, definition: Definition, findings: Findings) -> None:
        """Require that the files of a definition are here and may be used.

        Raises:
            InvalidRequest, WrongState: one is not, unless `findings` collects that.
        """
        check_files(definition, self._settings.roots, findings)

    def check_memory(self, definition: Definition) -> None:
        """Require that there is memory for a guest.

        Raises:
            WrongState: there is not enough.
        """
        check_memory(definition, self._settings.memory_margin_kib)

    def check_place(self, path: str) -> Path:
        """Resolve the path of a file, which has to lie where the operator lets definitions point to.

        Raises:
            InvalidRequest: it is not absolute and plain, or lies elsewhere.
        """
        return confine(path, self._settings.roots)

    async def qemu_facts(self, definition: Definition) -> BinaryFacts:
        """Tell what the QEMU offers that this host would run a definition with.

        Raises:
            InvalidRequest, WrongState: there is none.
        """
        return await self._probes.facts(find_emulator(definition, self._settings))

    async def check_capability(self, definition: Definition, capability: str) -> None:
        """Require that the QEMU of a definition knows a migration capability.

        Raises:
            WrongState: it does not.
        """
        facts = await self.qemu_facts(definition)
        if capability not in facts.capabilities:
            raise WrongState(
                f"QEMU {facts.version} of VM {definition.name} has no {capability}",
                reason="CAPABILITY_MISSING",
                capability=capability,
            )

    def check_storable(self, stored: Stored) -> None:
        """Require that what another host keeps of a VM may be kept here.

        Raises:
            InvalidRequest: a file lies outside of the configured directories.
        """
        if stored.definition is not None:
            self.check_paths(stored.definition)

    def check_host(self, definition: Definition, findings: Findings, *, to_come: Container[str] = ()) -> None:
        """Require that this host has the files, but for those `to_come`, the bridges and the memory that a VM needs.

        Raises:
            InvalidRequest, WrongState: it has not, unless `findings` collects that.
        """
        check_files(definition, self._settings.roots, findings, to_come=to_come)
        check_bridges(definition, findings)
        with findings.check():
            check_memory(definition, self._settings.memory_margin_kib)
        with findings.check():
            check_huge_pages(definition)

    async def check_startable(self, definition: Definition, findings: Findings) -> None:
        """Require that a VM that comes without its guest could be started here later.

        Raises:
            InvalidRequest, WrongState: it could not, unless `findings` collects that.
        """
        self.check_files(definition, findings)
        check_bridges(definition, findings)
        with findings.check():
            facts = await self.qemu_facts(definition)
            check_cpu_model(pin(definition, facts), facts)

    async def pin(self, definition: Definition) -> Definition:
        """Name the machine type by its version here.

        Raises:
            InvalidRequest, WrongState: this host's QEMU cannot build it.
        """
        return pin(definition, await self.qemu_facts(definition))

    async def prepare(self, definition: Definition) -> tuple[Definition, Path]:
        """Settle what is to be started, and with which QEMU.

        Raises:
            InvalidRequest, WrongState: the machine type, the CPU model or the accelerator is missing here.
        """
        binary = find_emulator(definition, self._settings)
        facts = await self._probes.facts(binary)
        pinned = pin(definition, facts)
        check_cpu_model(pinned, facts)
        accelerator = await choose_accelerator(pinned, binary, self._probes)
        return replace(spell(pinned, facts.version), accelerator=accelerator), binary
