"""VMs on a real QEMU, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from agent.store import Store
from agent.vm.definition import Accelerator, Definition
from agent.vm.lifecycle import Vms
from agent.vm.probes import HostProbes
from agent.vm.settings import VmSettings
from agent.vm.vm import Vm

BOOT_SECTOR_BYTES = 512
BOOT_TIMEOUT_CS = 1000
IMAGE_BYTES = 1024 * 1024  # the BIOS reads no disk of less than a cylinder
# Enables the power button (port 0x602), writes `F` to COM1, polls the button (0x600), and when it is pressed powers off
# (0x604). Source: hw/acpi/core.c; SeaBIOS puts the power management block at 0x600.
_CODE = bytes.fromhex(
    "ba0206 b80001 ef"  # mov dx,0x602; mov ax,0x100; out dx,ax
    "baf803 b046 ee"  # mov dx,0x3f8; mov al,'F'; out dx,al
    "ba0006 ed f6c401 74fa"  # mov dx,0x600; l: in ax,dx; test ah,1; jz l
    "ba0406 b80020 ef f4 ebfd"  # mov dx,0x604; mov ax,0x2000; out dx,ax; h: hlt; jmp h
)


def write_guest(directory: Path) -> Path:
    """Write a disk image that boots, says so on the serial line, and powers off when it is asked to."""
    image = directory / "guest.img"
    sector = _CODE.ljust(BOOT_SECTOR_BYTES - 2, b"\0") + b"\x55\xaa"
    image.write_bytes(sector.ljust(IMAGE_BYTES, b"\0"))
    return image


def guest_xml(directory: Path, uuid: UUID, *, name: str = "web", inside: str = "", machine: str = "q35") -> bytes:
    """Write the domain of that guest; its serial line goes to `serial.log`."""
    return f"""
        <domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory>16392</memory>
          <os><type arch='x86_64' machine='{machine}'>hvm</type></os>
          <features><acpi/></features>
          <devices>
            <disk type='file'><source file='{write_guest(directory)}'/><target dev='vda' bus='virtio'/></disk>
            <serial type='file'><source path='{directory}/serial.log' append='on'/></serial>
            {inside}
          </devices>
        </domain>""".encode()


@asynccontextmanager
async def agent(state_dir: Path, settings: VmSettings | None = None) -> AsyncIterator[Vms]:
    """Run what an agent has of VMs; leaving it leaves the QEMUs, as a restart of the agent does."""
    store = Store(state_dir)
    async with Vms(store, settings or VmSettings(), HostProbes(store.cache_dir)) as vms:
        yield vms


async def wait_booted(directory: Path) -> None:
    """Wait until the guest has spoken on its serial line."""
    for _ in range(BOOT_TIMEOUT_CS):  # a file tells nobody that it has grown
        if b"F" in _read(directory / "serial.log"):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the guest has not booted")


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


async def stop_all(vms: Vms) -> None:
    """End every QEMU, so that a test leaves none."""
    for vm in vms.all():
        await _stop(vm)


async def _stop(vm: Vm) -> None:
    if vm.keeper is not None:
        vm.keeper.identity.send_signal(9)  # type: ignore[arg-type]
        async with asyncio.timeout(10):
            await vm.keeper.ended.wait()


async def running_definition(place: Path, uuid: UUID) -> Definition:
    """Return the definition of the guest as a source would send it."""
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, uuid), "web.xml")
        return replace(vm.definition, accelerator=Accelerator.TCG)
