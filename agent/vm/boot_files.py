"""Files that a guest's firmware and kernel come from: named by a definition, read by QEMU, and not carried with a guest.

What was loaded goes along with the memory of a guest: firmware, option ROMs and what `loader` put there are not read again on its
new host, not at a reset either. A kernel, its initrd, a device tree, SMBIOS tables and what `-fw_cfg` names are kept outside of it:
the guest gets those of its new host, at its next reset, or whenever it asks.

Source: hw/core/loader.c, rom_reset(); hw/nvram/fw_cfg.c, vmstate_fw_cfg; hw/i386/x86.c, x86_load_linux().
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from agent.vm.options import strings_of

if TYPE_CHECKING:
    from agent.vm.definition import Definition
    from agent.vm.options import Option


class Needed(Enum):
    """When a guest that has come gets to see the file of its new host."""

    ANY_TIME = "whenever it reads it"
    RESET = "at its next reset"
    START = "when it is powered off and started again"


@dataclass(frozen=True, slots=True)
class BootFile:
    """One file; `what` is the same on every host for the same use."""

    what: str
    path: str
    needed: Needed


_TEXTS: Final = {"kernel": Needed.RESET, "initrd": Needed.RESET, "dtb": Needed.RESET, "bios": Needed.START}
_OF_MACHINES: Final = {
    "kernel": Needed.RESET,
    "initrd": Needed.RESET,
    "dtb": Needed.RESET,
    "firmware": Needed.START,
    "splash": Needed.RESET,
}


def boot_files(definition: Definition) -> tuple[BootFile, ...]:
    """List them."""
    return tuple(one for one in _find(definition) if one.path.startswith("/"))


def _find(definition: Definition) -> Iterator[BootFile]:
    for key, value in strings_of(definition.machine_properties):
        if key in _OF_MACHINES:
            yield BootFile(key, value, _OF_MACHINES[key])
    for index, option in enumerate(definition.options):
        yield from _of_option(option, index)
    yield from _flashes(definition)


def _of_option(option: Option, index: int) -> Iterator[BootFile]:
    match option.name:
        case "kernel" | "initrd" | "dtb" | "bios" if option.text is not None:
            yield BootFile(option.name, option.text, _TEXTS[option.name])
        case "fw_cfg":
            yield BootFile(f"fw_cfg {option.get('name')}", option.get("file"), Needed.ANY_TIME)
        case "smbios":
            yield BootFile(f"smbios {option.get('type') or index}", option.get("file") or option.get("path"), Needed.RESET)
        case "boot":
            yield BootFile("boot splash", option.get("splash"), Needed.RESET)
        case "device":
            what = f"device {option.get('id') or option.get('driver')}"
            yield BootFile(f"{what} romfile", option.get("romfile"), Needed.START)
            if option.get("driver") == "loader":
                yield BootFile(f"{what} file", option.get("file"), Needed.START)
        case "drive" if option.get("if") == "pflash" and option.get("readonly") == "on":
            yield BootFile("firmware", option.get("file"), Needed.START)


def _flashes(definition: Definition) -> Iterator[BootFile]:
    nodes: dict[str, Option] = {option.get("node-name"): option for option in definition.find("blockdev")}
    for key in ("pflash0", "pflash1"):
        node = nodes.get(str(definition.machine_properties.get(key, "")))
        while node is not None:
            if node.get("filename") and node.properties.get("read-only") in (True, "on"):
                yield BootFile(f"firmware ({key})", node.get("filename"), Needed.START)
            node = nodes.get(node.get("file"))
