"""A VM with every carried device starts on each QEMU and moves between them."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from agent.qemu.subscription import Event
from agent.vm.jobs import Job
from agent.vm.settings import VmSettings
from agent.vm.stored import Stored
from agent.vm.vm import VmState
from tests.binaries import BINARIES, MOSTLY_OLDER
from tests.qemu.vms import agent, guest_xml, stop_all, wait_booted

if TYPE_CHECKING:
    from agent.vm.lifecycle import Vms
    from agent.vm.vm import Vm

UUID_1 = UUID("11111111-0000-0000-0000-000000000001")
CAPABILITIES = {"events": True, "return-path": True, "late-block-activate": True}
CLOCKS = """
    <features><acpi/><apic/><pae/><vmport state='off'/><smm state='off'/><pmu state='off'/></features>
    <clock offset='utc'>
      <timer name='rtc' tickpolicy='catchup'/><timer name='pit' tickpolicy='delay'/><timer name='hpet' present='no'/>
    </clock>
    <pm><suspend-to-mem enabled='no'/><suspend-to-disk enabled='no'/></pm>
    <on_reboot>destroy</on_reboot>
    <vcpu>2</vcpu>
    <cpu><model>qemu64</model><topology sockets='1' cores='2' threads='1'/><feature name='svm' policy='disable'/></cpu>
"""


def devices(place: Path) -> str:
    """Write one device of each kind."""
    return f"""
        <disk type='file'><driver name='qemu' type='raw' cache='none' io='native' discard='unmap'/>
          <source file='{place}/a, b=c.img'/><target dev='vdb'/><serial>WD 1</serial></disk>
        <disk type='file'><driver type='raw' cache='writethrough' io='threads'/>
          <source file='{place}/ro.img'/><target dev='vdc'/><readonly/></disk>
        <interface type='user'><model type='virtio'/></interface>
        <serial type='pty'/>
        <serial type='null'/>
        <console type='file'><source path='{place}/serial.log' append='on'/></console>
        <console type='pty'><target type='virtio'/></console>
        <console type='null'><target type='virtio'/></console>
        <rng model='virtio'><backend model='random'>/dev/urandom</backend><rate bytes='1024'/></rng>
        <rng model='virtio'><backend model='builtin'/></rng>
        <memballoon model='virtio' autodeflate='on' freePageReporting='on'/>
        <disk type='file'><driver type='qcow2'/><source file='{place}/s.qcow2'/><target dev='sda' bus='sata'/>
          <iotune><total_iops_sec>1000</total_iops_sec></iotune></disk>
        <disk type='file' device='cdrom'><source file='{place}/ro.img'/><target dev='sdb' bus='scsi'/></disk>
        <controller type='scsi' model='virtio-scsi'/>
        <controller type='usb' model='qemu-xhci'/>
        <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
        <graphics type='vnc'><listen type='socket'/></graphics>
        <video><model type='virtio'/></video>
        <input type='tablet' bus='usb'/>
        <input type='keyboard' bus='virtio'/>
        <sound model='ich9'/>
        <watchdog model='i6300esb' action='reset'/>
        <panic model='isa'/>
        <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
    """


def full_xml(place: Path, machine: str) -> bytes:
    """Write a domain with everything that is carried."""
    for name in ("a, b=c.img", "ro.img"):
        (place / name).write_bytes(b"\0" * 65536)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(place / "s.qcow2"), "8M"], check=True)
    xml = guest_xml(place, UUID_1, name="a=1,b=2 ü", inside=devices(place), machine=machine)
    return xml.replace(b"<features><acpi/></features>", CLOCKS.encode())


async def move(source: Vms, vm: Vm, destination: Vms, place: Path) -> Vm:
    """Move a VM, as bluntly as can be."""
    out = source.lock(vm, Job.MIGRATION_OUT, "m-1")
    arrived, into = await destination.start_incoming(vm.get_running().definition, "m-1")
    for qemu in (source.qemu(vm), destination.qemu(arrived)):
        await qemu.set_capabilities(CAPABILITIES)
    await destination.qemu(arrived).migrate_incoming(f"unix:{place}/m")
    with source.qemu(vm).monitor.subscribe() as notices:
        await source.qemu(vm).migrate(f"unix:{place}/m")
        async for notice in notices:
            if isinstance(notice, Event) and notice.name == "MIGRATION":
                assert notice.data["status"] != "failed", arrived.directory.log_path.read_text()
                if notice.data["status"] == "completed":
                    break
    await destination.qemu(arrived).cont()
    destination.keep_here(into)
    destination.persist(into, Stored())
    into.release()
    await source.drop(out)
    out.release()
    return arrived


@pytest.mark.parametrize("version", MOSTLY_OLDER)
@pytest.mark.parametrize("machine", ["pc", "q35"])
async def test_every_carried_device_starts_and_the_guest_boots(place: Path, version: str, machine: str) -> None:
    async with agent(place / "s", VmSettings(qemu=str(BINARIES[version]))) as vms:
        vm = await vms.define(full_xml(place, machine), "web.xml")
        await vms.start(vm)
        await wait_booted(place)

        assert (await vms.view(vm)).state is VmState.RUNNING
        assert "qemu-system-x86_64:" not in vm.directory.log_path.read_text()
        await vms.stop(vm, timeout_s=10)


@pytest.mark.parametrize("machine", ["pc-i440fx-7.2", "pc-q35-7.2"])
async def test_a_vm_with_every_device_moves_between_versions_and_back(place: Path, machine: str) -> None:
    async with (
        agent(place / "s", VmSettings(qemu=str(BINARIES["7.2"]))) as old,
        agent(place / "d", VmSettings(qemu=str(BINARIES["10.0"]))) as new,
        asyncio.timeout(30),
    ):
        vm = await old.define(full_xml(place, machine), "web.xml")
        await old.start(vm)
        await wait_booted(place)

        there = await move(old, vm, new, place)
        back = await move(new, there, old, place)

        assert (await old.view(back)).state is VmState.RUNNING
        assert new.all() == []
        await old.stop(back, timeout_s=10)
        await stop_all(new)
