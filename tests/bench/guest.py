"""The guests of the benchmark, alike for QEMU alone and for Ferry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from tests.bench import raw
from tests.guests import linux, tick

MACHINE = "pc-q35-7.2"
NAME = "bench"

DOMAIN = """\
<domain type="qemu">
  <name>{name}</name>
  <memory unit="KiB">{memory_kib}</memory>
  <vcpu>1</vcpu>
  <os><type arch="x86_64" machine="{machine}">hvm</type>{boot}</os>
  <features><acpi/></features>
  <devices>
    {devices}
    <serial type="file"><source path="{serial}" append="on"/><target port="0"/></serial>
  </devices>
</domain>
"""
_DISK = """\
<disk type="file" device="disk">
      <driver name="qemu" type="raw"/>
      <source file="{image}"/>
      <target dev="vda" bus="virtio"/>
    </disk>"""


@dataclass(frozen=True, slots=True)
class Guest:
    """A freshly made guest, to be started once.

    Attributes:
        raw: its options for a QEMU without management.
        domain: its definition for Ferry.
        serial: where it ticks.
    """

    raw: raw.Guest
    domain: bytes
    serial: Path


Make = Callable[[Path], Guest]


def tick_guest(megabytes: int, dirty_mib_s: float = 0.5) -> Make:
    """Give what makes, in a directory, a guest with so many MiB of a pattern that does not compress, and hardly changes."""

    def make(directory: Path) -> Guest:
        image = tick.build(megabytes, dirty_mib_s=dirty_mib_s, period_ms=2.0, verify_mib_s=0.5, directory=directory)
        serial = directory / "serial.log"
        memory_kib = tick.memory_kib(megabytes)
        domain = DOMAIN.format(
            name=NAME, memory_kib=memory_kib, machine=MACHINE, boot="", devices=_DISK.format(image=image), serial=serial
        )
        return Guest(raw.tick_guest(image, memory_kib, serial, machine=MACHINE), domain.encode(), serial)

    return make


def linux_guest(directory: Path) -> Guest:
    """Make a Linux guest of 512 MiB that changes 4 MiB each second."""
    initrd, words = linux.build(), linux.command_line(64, 4.0, 10.0, verify_mib_s=4.0)
    serial = directory / "serial.log"
    boot = f"<kernel>{linux.KERNEL}</kernel><initrd>{initrd}</initrd><cmdline>{escape(words)}</cmdline>"
    domain = DOMAIN.format(name=NAME, memory_kib=linux.MEMORY_KIB, machine=MACHINE, boot=boot, devices="", serial=serial)
    bare = raw.linux_guest(linux.KERNEL, initrd, words, linux.MEMORY_KIB, serial, machine=MACHINE)
    return Guest(bare, domain.encode(), serial)
