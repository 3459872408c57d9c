"""The demo's guest: a stock Linux kernel with one program that counts on its console and keeps changing its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.guests import linux

if TYPE_CHECKING:
    from pathlib import Path

NAME = "web"
UUID = "5f0c7a1e-2b7d-4c1b-9d53-7d1f6f0a9c11"
DIRTY_MIB = 64
RATE_MIB_S = 4.0
PERIOD_MS = 250.0

_DOMAIN = """\
<domain type='kvm'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='KiB'>{memory_kib}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <serial type='file'>
      <source path='{console}' append='on'/>
      <target port='0'/>
    </serial>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
</domain>
"""


def definition(console: Path) -> str:
    """Write the guest's libvirt domain XML; both hosts append to one console file.

    Raises:
        FileNotFoundError: the kernel is not there; `make setup` brings it.
    """
    if not linux.KERNEL.exists():
        raise FileNotFoundError(f"{linux.KERNEL} is not there: make setup brings it")
    return _DOMAIN.format(
        name=NAME,
        uuid=UUID,
        memory_kib=linux.MEMORY_KIB,
        kernel=linux.KERNEL,
        initrd=linux.build(),
        cmdline=linux.command_line(DIRTY_MIB, RATE_MIB_S, PERIOD_MS),
        console=console,
    )
