"""Guests that QEMU itself would lose under TCG, by where their memory lies, are refused; the way out that is told moves them."""

from __future__ import annotations

import pytest

from tests.e2e.binaries import machine_of, require
from tests.e2e.guest import Plan
from tests.e2e.lab import Lab
from tests.e2e.move import State, wishes
from tests.e2e.refusals import assert_refused

MEGABYTES = 24
FIRST_KIB, SECOND_KIB = 16 * 1024, 32 * 1024


@pytest.mark.parametrize("version", ["10.0", pytest.param("11.1", marks=pytest.mark.matrix)])
async def test_a_layout_that_would_end_qemu_is_refused_before_anything_moves_and_goes_paused(version, lab: Lab):
    cells = f'<cell id="0" cpus="0" memory="{FIRST_KIB}" unit="KiB"/><cell id="1" memory="{SECOND_KIB}" unit="KiB"/>'
    plan = Plan(
        emulator=require(version),
        machine=machine_of((version, version)),
        megabytes=MEGABYTES,
        dirty_mib_s=16.0,
        sweeps_per_s=2.0,
        memory_kib=FIRST_KIB + SECOND_KIB,
        cpu=f"<cpu><numa>{cells}</numa></cpu>",
    )
    guest = await lab.start_guest(plan=plan)

    await assert_refused(lab, guest, "MEMORY_LOST_BY_QEMU", "ram-node1", "larger than ram-node0", "--pause")
    outcome = await (await lab.start_move(options=wishes(pause=True))).outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert [text for text in outcome.warnings if "must not be continued" in text]
    await guest.console.wait_sweeps(2)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()
