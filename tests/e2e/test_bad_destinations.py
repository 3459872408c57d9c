"""Destinations that lack something: each with a clear message before anything is sent, and nothing changed."""

from __future__ import annotations

import re
from pathlib import Path
from uuid import uuid4

import pytest

from tests.e2e.binaries import require
from tests.e2e.guest import Guest, Plan, domain
from tests.e2e.lab import PAUSED, Lab, refused
from tests.e2e.move import State, wishes
from tests.e2e.refusals import assert_refused
from tests.e2e.steps import Steps
from tests.guests import linux, tick
from tests.guests.console import Console

MARGIN_KIB = 64 * 1024


async def start_held(lab: Lab, host: str, xml: bytes) -> Guest:
    """Start a VM whose guest never runs, since what it would run does not matter."""
    uuid = uuid4()
    await lab.define(host, re.sub(rb"<uuid>.*</uuid>", f"<uuid>{uuid}</uuid>".encode(), xml))
    await lab.start_vm(host, "web", paused=True)
    return Guest("web", uuid, Console(lab.directory / "serial.log"), lab.directory)


def memory_available_kib() -> int:
    """Read what new programs may use."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0])


@pytest.mark.parametrize("what", ["name", "uuid"])
async def test_a_name_or_uuid_that_the_destination_has_already_is_refused(what, lab: Lab):
    guest = await lab.start_guest()
    name, uuid = ("web", uuid4()) if what == "name" else ("other", guest.uuid)
    await lab.define("host-b", domain(Plan(name=name), lab.directory, uuid=uuid))

    await assert_refused(lab, guest, "VM_EXISTS", str(guest.uuid) if what == "uuid" else "web", others=(name,))


async def test_a_move_under_another_name_gets_round_a_name_that_is_taken(lab: Lab):
    guest = await lab.start_guest()
    await lab.define("host-b", domain(Plan(name="web"), lab.directory, uuid=uuid4()))

    move = await lab.start_move(options=wishes(destination_name="web-2"), source="host-a")
    outcome = await move.outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert await lab.vms("host-b") == {"web": "STOPPED", "web-2": "RUNNING"}
    assert await lab.vms("host-a") == {}
    await guest.console.wait_sweeps(1)
    guest.assert_whole()


async def test_a_disk_that_is_missing_is_refused(lab: Lab):
    guest = await lab.start_guest()
    image = next(lab.directory.glob("tick-*.img"))
    image.unlink()

    await assert_refused(lab, guest, "FILE_MISSING", "vda", str(image))


async def test_a_disk_of_the_same_name_that_is_another_file_is_refused(lab: Lab):
    """Not to be had on one machine but by taking away the file that would prove it."""
    guest = await lab.start_guest()
    by_hand = Steps(lab)
    await by_hand.begin()
    for marker in lab.directory.glob(".ferry-*"):
        marker.write_text("what another host's file would hold")

    with refused("FILE_EXISTS", "vda", str(next(lab.directory.glob("tick-*.img"))), "is not the file that host-a uses"):
        await by_hand.prepare()
    await by_hand.cancel()

    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


async def test_a_kernel_that_is_missing_is_refused(lab: Lab):
    kernel = lab.directory / "vmlinuz"
    kernel.write_bytes(linux.KERNEL.read_bytes())
    xml = domain(Plan(), lab.directory).replace(b"</os>", f"<kernel>{kernel}</kernel></os>".encode())
    guest = await start_held(lab, "host-a", xml)
    kernel.unlink()

    await assert_refused(lab, guest, "FILE_MISSING", "kernel", str(kernel), state=PAUSED)


async def test_a_machine_type_that_is_unknown_there_is_refused(lab: Lab):
    require("10.0")
    guest = await lab.start_guest("host-b", Plan(machine="pc-q35-10.0"))

    await assert_refused(lab, guest, "MACHINE_UNKNOWN", "pc-q35-10.0", to="host-a")


async def test_a_cpu_model_that_is_unknown_there_is_refused(lab: Lab):
    require("10.0")
    cpu = '<cpu mode="custom" match="exact"><model>SierraForest</model></cpu>'
    guest = await start_held(lab, "host-b", domain(Plan(cpu=cpu), lab.directory))

    await assert_refused(lab, guest, "CPU_MODEL_UNKNOWN", "SierraForest", to="host-a", state=PAUSED)


async def test_a_cpu_that_differs_there_is_refused(lab: Lab):
    """QEMU itself does not notice, and the guest dies."""
    require("10.0")
    guest = await lab.start_guest(plan=Plan(cpu='<cpu mode="custom" match="exact"><model>max</model></cpu>'))

    await assert_refused(lab, guest, "CPU_DIFFERS", "max", "host-a", "0x")


async def test_a_guest_with_more_memory_than_there_is_is_refused(lab: Lab):
    memory_kib = memory_available_kib() + MARGIN_KIB
    guest = await start_held(lab, "host-a", domain(Plan(memory_kib=memory_kib), lab.directory))

    await assert_refused(lab, guest, "NOT_ENOUGH_MEMORY", str(memory_kib), str(MARGIN_KIB), state=PAUSED)


async def test_memory_that_old_qemu_loses_under_tcg_is_warned_of_with_the_right_size(lab: Lab):
    wrong_kib = tick.memory_kib(4) - 8
    guest = await lab.start_guest(plan=Plan(memory_kib=wrong_kib, dirty_mib_s=0))

    move = await lab.start_move()
    outcome = await move.outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert any(str(wrong_kib) in text and str(wrong_kib + 8) in text for text in outcome.warnings), outcome.warnings
    await lab.assert_only_on("host-b", guest)
