"""Definitions and facts for tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from agent.qemu.binary import BinaryFacts
from agent.qemu.machine import CpuModel, MachineType, QemuVersion
from agent.vm.domain.parse import parse_domain
from agent.vm.pinning import pin

if TYPE_CHECKING:
    from agent.vm.definition import Definition

SAMPLE_UUID = UUID("6f8d3a52-3f0b-4b43-9a5e-2f3c56a1b7d0")
FULL = """\
<domain type='kvm' id='3'>
  <name>web</name>
  <uuid>6f8d3a52-3f0b-4b43-9a5e-2f3c56a1b7d0</uuid>
  <title>ignored</title>
  <description>ignored <b>too</b></description>
  <metadata><x:y xmlns:x='urn:x'>ignored</x:y></metadata>
  <memory unit='MiB'>512</memory>
  <currentMemory unit='MiB'>256</currentMemory>
  <vcpu placement='static'>4</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>/boot/vmlinuz</kernel>
    <initrd>/boot/initrd</initrd>
    <cmdline>console=ttyS0 a,b=c</cmdline>
    <boot dev='network'/>
    <boot dev='hd'/>
  </os>
  <features><acpi/><apic/><pae/><vmport state='off'/><smm state='off'/><pmu state='off'/></features>
  <cpu mode='custom' match='exact' check='partial'>
    <model fallback='forbid'>Nehalem</model>
    <topology sockets='2' dies='1' cores='2' threads='1'/>
    <feature policy='require' name='lahf_lm'/>
    <feature policy='disable' name='pclmuldq'/>
  </cpu>
  <clock offset='utc'>
    <timer name='rtc' tickpolicy='catchup'/>
    <timer name='pit' tickpolicy='delay'/>
    <timer name='hpet' present='no'/>
  </clock>
  <pm><suspend-to-mem enabled='no'/><suspend-to-disk enabled='yes'/></pm>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' io='native' discard='unmap'/>
      <source file='/srv/web,1.qcow2'/>
      <target dev='vda' bus='virtio'/>
      <serial>WD-1 2</serial>
    </disk>
    <disk type='file'>
      <source file='/srv/data.img'/>
      <target dev='vdb'/>
      <readonly/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x08' function='0x0'/>
    </disk>
    <interface type='user'><mac address='52:54:00:AA:BB:CC'/><model type='virtio'/></interface>
    <interface type='ethernet'><target dev='tap0' managed='no'/><model type='virtio'/></interface>
    <interface type='bridge'><source bridge='br0'/><model type='virtio'/></interface>
    <serial type='file'><source path='/var/log/a,b.log' append='on'/><target type='isa-serial' port='0'/></serial>
    <serial type='unix'><source mode='bind' path='/run/x.sock'/></serial>
    <console type='file'>
      <source path='/var/log/a,b.log' append='on'/><target type='serial' port='0'/>
    </console>
    <console type='pty'><target type='virtio' port='1'/></console>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend><rate bytes='1024' period='500'/></rng>
    <rng model='virtio'><backend model='builtin'/></rng>
    <memballoon model='virtio' autodeflate='on' freePageReporting='off'><alias name='balloon0'/></memballoon>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='usb' index='0' model='none'/>
    <controller type='sata' index='0'><address type='pci' bus='0x00' slot='0x1f' function='0x2'/></controller>
    <input type='keyboard' bus='ps2'/>
  </devices>
</domain>
"""


NOTHING = "<controller type='usb' model='none'/><memballoon model='none'/>"


def domain(  # noqa: PLR0913 - one argument for each place where tests put something
    *,
    inside: str = "",
    devices: str = NOTHING,
    name: str = "web",
    kind: str = "qemu",
    machine: str = "q35",
    memory: str = "<memory>16392</memory>",
    features: str = "",
) -> str:
    """Write a small domain."""
    return (
        f"<domain type='{kind}'><name>{name}</name><uuid>{SAMPLE_UUID}</uuid>{memory}"
        f"<os><type machine='{machine}'>hvm</type></os>{features}{inside}<devices>{devices}</devices></domain>"
    )


def parse(xml: str) -> Definition:
    """Parse domain XML."""
    return parse_domain(xml.encode(), "web.xml", new_uuid=lambda: SAMPLE_UUID)


def pinned(xml: str) -> Definition:
    """Parse and pin domain XML."""
    return pin(parse(xml), FACTS)


def _machine(name: str, alias: str | None = None) -> MachineType:
    return MachineType(name=name, alias=alias, cpu_max_count=255, default_cpu=None, is_deprecated=False, is_default=alias == "pc")


def _model(name: str) -> CpuModel:
    return CpuModel(name=name, unavailable_features=(), is_migration_safe=True, alias_of=None, is_deprecated=False)


FACTS = BinaryFacts(
    path=Path("/usr/bin/qemu-system-x86_64"),
    accelerator="tcg",
    version=QemuVersion(7, 2, 22, ""),
    machines={
        machine.name: machine
        for machine in (
            _machine("pc-i440fx-7.2", "pc"),
            _machine("pc-i440fx-7.1"),
            _machine("pc-q35-7.2", "q35"),
            _machine("isapc"),
        )
    },
    cpu_models={name: _model(name) for name in ("qemu64", "Nehalem", "max")},
    cpu_properties=frozenset({"enforce", "lahf-lm", "pclmulqdq", "pmu"}),
    capabilities=frozenset(),
    abilities=frozenset(),
)
