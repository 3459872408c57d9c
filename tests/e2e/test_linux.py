"""A Linux guest is moved once encrypted and once through the tunnel."""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.e2e.guest import Guest
from tests.e2e.lab import Lab, now_s
from tests.e2e.move import State, wishes
from tests.guests import linux
from tests.guests.console import Console

BOOT_TIMEOUT_S = 60.0
DOWNTIME_LIMIT_S = 2.3
# Beside the downtime, QEMU holds the guest up while it prepares to send it, on a busy machine for longer.
GAP_LIMIT_S = 5.0


def domain(lab: Lab, uuid: object) -> bytes:
    """Write the domain XML of the Linux guest."""
    line = linux.command_line(dirty_mib=32, rate_mib_s=8.0, period_ms=20.0)
    return f"""
        <domain type="qemu">
          <name>linux</name>
          <uuid>{uuid}</uuid>
          <memory unit="KiB">{linux.MEMORY_KIB}</memory>
          <vcpu>1</vcpu>
          <os>
            <type arch="x86_64" machine="pc-q35-7.2">hvm</type>
            <kernel>{linux.KERNEL}</kernel>
            <initrd>{linux.build()}</initrd>
            <cmdline>{line}</cmdline>
          </os>
          <features><acpi/></features>
          <devices>
            <serial type="file"><source path="{lab.directory}/serial.log" append="on"/><target port="0"/></serial>
            <rng model="virtio"><backend model="random">/dev/urandom</backend></rng>
          </devices>
        </domain>""".encode()


@pytest.mark.linux
@pytest.mark.timeout(150)
async def test_a_busy_linux_guest_is_moved_encrypted_and_back_through_the_tunnel(lab: Lab):
    if not linux.KERNEL.exists():
        pytest.fail(f"no kernel at {linux.KERNEL}; `make setup` puts it there", pytrace=False)
    uuid = uuid4()
    await lab.define("host-a", domain(lab, uuid))
    await lab.start_vm("host-a", "linux")
    guest = await lab.listen(Guest("linux", uuid, Console(lab.directory / "serial.log"), lab.directory), boot_s=BOOT_TIMEOUT_S)
    since_s = now_s()

    for there, options in (("host-b", wishes()), ("host-a", wishes(tunnel=True))):
        outcome = await (await lab.start_move(guest.name, there, options)).outcome()

        assert outcome.state == State.STATE_SUCCEEDED, outcome.error
        assert outcome.downtime.total.ToTimedelta().total_seconds() < DOWNTIME_LIMIT_S
        await guest.console.wait_sweeps(2, timeout_s=BOOT_TIMEOUT_S)
        await lab.assert_only_on(there, guest)

    guest.assert_no_gap(GAP_LIMIT_S, since_s)
    guest.assert_whole()
