"""A guest's clock after a move: compared, set by its agent when it is behind, and never a reason to fail."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.migration import clock_sync
from agent.migration.arrival import ClockSync, Outcome
from agent.migration.clock_sync import sync_clock
from agent.qemu.errors import QemuSilent
from agent.qemu.machine import Chardev, decode_chardevs
from tests.fakes.guest_agent import FakeGuestAgent, fake_guest_agent
from tests.unit.agent.vm.samples import domain, parse

CHANNEL = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
WITH_CHANNEL = parse(domain(devices=CHANNEL))


class Qemu:
    """As much of QEMU as is asked."""

    def __init__(self, chardev: Chardev | None) -> None:
        self.chardev = chardev

    async def query_chardevs(self) -> Mapping[str, Chardev]:
        if self.chardev is None:
            raise QemuSilent("query-chardev: no answer in 5.0 s")
        return {"charchannel0": self.chardev}


async def sync(agent: FakeGuestAgent, directory: Path, *, words: str = "disconnected:unix:{},server=on") -> ClockSync:
    path = directory / "ga"
    qemu: Any = Qemu(Chardev(words.format(path), is_frontend_open=True))
    async with fake_guest_agent(agent, path):
        return await sync_clock(qemu, WITH_CHANNEL)


async def test_a_clock_that_is_behind_is_set(tmp_path):
    agent = FakeGuestAgent(behind_s=12.5)

    found = await sync(agent, tmp_path)

    assert (found.outcome, round(found.behind_s, 1), found.error) == (Outcome.SET, 12.5, "")
    assert abs(agent.behind_s) < 1


@pytest.mark.parametrize("behind_s", [0.01, -0.5, -3600.0])
async def test_a_clock_that_is_right_or_ahead_is_left_alone(behind_s, tmp_path):
    agent = FakeGuestAgent(behind_s=behind_s)

    found = await sync(agent, tmp_path)

    assert (found.outcome, round(found.behind_s, 1)) == (Outcome.RIGHT, round(behind_s, 1))
    assert "guest-set-time" not in agent.asked


async def test_what_an_earlier_client_left_is_skipped(tmp_path):
    agent = FakeGuestAgent(behind_s=2.0, stale=b'{"return": 1}\n{"ret\xff{"return": 17}\n')

    assert (await sync(agent, tmp_path)).outcome is Outcome.SET


async def test_an_rtc_that_cannot_be_set_is_no_failure(tmp_path):
    agent = FakeGuestAgent(behind_s=2.0, refusals={"guest-set-time": "hwclock failed to set hardware clock"}, sets_anyway=True)

    assert (await sync(agent, tmp_path)).outcome is Outcome.SET


async def test_a_refusal_is_told_in_the_agents_words_fit_for_a_terminal(tmp_path):
    agent = FakeGuestAgent(behind_s=2.0, refusals={"guest-set-time": "the command is\x1b[31m disabled"})

    found = await sync(agent, tmp_path)

    assert (found.outcome, found.error) == (Outcome.FAILED, "guest-set-time: the command is?[31m disabled")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"hello\n", "JSON"),
        (b"[]\n", "answers"),
        (b'{"return": 9223372036854775808}\n', "out of range"),
        (b"x" * 100_000, "no answer"),
    ],
)
async def test_nonsense_is_told_and_fails_nothing(answer, told, tmp_path):
    found = await sync(FakeGuestAgent(answers={"guest-get-time": answer}), tmp_path)

    assert found.outcome is Outcome.FAILED
    assert told in found.error


async def test_a_mute_agent_is_waited_for_no_longer_than_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(clock_sync, "ANSWER_TIMEOUT_S", 0.05)

    found = await sync(FakeGuestAgent(is_mute=True), tmp_path)

    assert found == ClockSync(Outcome.FAILED, error="the guest's agent does not answer")


async def test_a_channel_that_another_client_has_is_left_to_it(tmp_path):
    agent = FakeGuestAgent(behind_s=2.0)

    found = await sync(agent, tmp_path, words="unix:{},server=on")

    assert "another client" in found.error
    assert not agent.asked


async def test_a_channel_that_the_guest_has_not_opened_has_no_agent():
    qemu: Any = Qemu(Chardev("disconnected:unix:/nowhere,server=on", is_frontend_open=False))

    assert await sync_clock(qemu, WITH_CHANNEL) == ClockSync(Outcome.NO_AGENT)


async def test_a_socket_that_is_not_there_and_a_mute_qemu_are_told():
    gone: Any = Qemu(Chardev("disconnected:unix:/nowhere/ga,server=on", is_frontend_open=True))
    mute: Any = Qemu(None)

    assert "/nowhere/ga: No such file" in (await sync_clock(gone, WITH_CHANNEL)).error
    assert "no answer" in (await sync_clock(mute, WITH_CHANNEL)).error


async def test_a_guest_without_the_channel_is_not_asked():
    qemu: Any = Qemu(None)

    assert await sync_clock(qemu, parse(domain())) == ClockSync()


def test_qemus_words_for_lines_are_decoded():
    reply = [{"label": "a", "filename": "disconnected:unix:/x,server=on", "frontend-open": False}]

    assert decode_chardevs(reply) == {"a": Chardev("disconnected:unix:/x,server=on", is_frontend_open=False)}
