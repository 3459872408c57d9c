"""Moves that cannot be: refused at once or failed soon, with a reason, and nothing changed."""

from __future__ import annotations

from common.errors import FerryError
from ferry.common.v1 import migration_pb2 as common_pb
from tests.e2e.guest import Guest
from tests.e2e.lab import RUNNING, Lab
from tests.e2e.move import State, Where


async def find_refusal(lab: Lab, vm: str, to: str, options: common_pb.MigrationOptions | None, source: str) -> tuple[str, str]:
    """Try to move a VM that cannot be moved, and return the reason and the text.

    Raises:
        AssertionError: it was moved, or is not where it was.
    """
    try:
        move = await lab.start_move(vm, to, options, source=source)
    except FerryError as error:
        return error.reason, error.text
    outcome = await move.outcome()
    assert outcome.state == State.STATE_FAILED, outcome
    assert outcome.guest_location == Where.GUEST_LOCATION_SOURCE
    return outcome.error_reason, outcome.error


async def assert_refused(  # noqa: PLR0913 -- who, whereto, how, and what is said
    lab: Lab,
    guest: Guest,
    reason: str,
    *words: str,
    to: str = "host-b",
    options: common_pb.MigrationOptions | None = None,
    state: str = RUNNING,
    others: tuple[str, ...] = (),
) -> None:
    """Fail unless moving the guest is refused with this reason and these words, and nothing is changed.

    Args:
        others: VMs of the destination that have nothing to do with it.
    """
    source = "host-b" if to == "host-a" else "host-a"
    found, text = await find_refusal(lab, guest.name, to, options, source)

    assert found == reason, text
    for word in words:
        assert word in text
    assert not text[0].isupper() or text.startswith(("VM ", "CPU ", "UUID ")), text
    assert not text.endswith(".")
    if state == RUNNING:
        await guest.console.wait_ticks(3)
        guest.assert_whole()
    await lab.assert_only_on(source, guest, state, others=others)
