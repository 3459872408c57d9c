"""Takes QEMU's monitor over from an agent that is away, and gives it back as soon as the agent is there again."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from qemu.qmp import ExecuteError

from agent.guardian.charge import Charge
from agent.guardian.duty import Duty, duty_of
from agent.guardian.ear import Ear
from agent.guardian.note import write_note
from agent.qemu.connection import Connection, Interrupted, NotSent, dial
from agent.qemu.errors import QemuInUse, QemuSilent
from agent.qemu.identity import ProcessIdentity
from agent.qemu.subscription import Event
from common.clock import boot_s
from common.errors import FerryError

DIAL_TIMEOUT_S: Final = 1.0
RETRY_S: Final = 0.05
LOOK_S: Final = 0.25
ANSWER_S: Final = 2.0
LOOK_AT_AGENT_S: Final = 0.2


class StandIn:
    """One move without its agent."""

    def __init__(self, ear: Ear) -> None:
        self._ear = ear
        self._stopped_at_s = 0.0
        self._status = ""

    async def run(self) -> None:
        """Guard until the agent has ended and nothing is left to do; then the process may end."""
        while True:
            while not self._ear.is_agent_away:
                await self._ear.wait_news(LOOK_AT_AGENT_S)
            charge = self._ear.charge
            is_done = charge is None or await self._stand_in(charge)
            while is_done and self._ear.is_agent_away:
                if self._ear.has_ended:
                    return
                await self._ear.wait_news(LOOK_AT_AGENT_S)

    async def _stand_in(self, charge: Charge) -> bool:
        """Act for an agent that is away; say whether nothing is left to do, as against the agent being back."""
        process = ProcessIdentity(charge.pid, charge.start_time_ticks)
        self._stopped_at_s = self._ear.heard_at_s  # until then the agent saw to it
        if not charge.is_under_way:
            return True
        say(f"migration {charge.migration_id}: the agent is away, its QEMU {charge.pid} is watched")
        self._ear.cut_off()
        while self._ear.is_agent_away and process.is_alive():
            try:
                connection = await dial(Path(charge.qmp_path), process, self._see_event, timeout_s=DIAL_TIMEOUT_S)
            except (QemuInUse, QemuSilent):
                await self._ear.wait_news(RETRY_S)
                continue
            try:
                duty = await self._watch(charge, connection)
            except (ExecuteError, NotSent, Interrupted, TimeoutError) as error:
                say(f"migration {charge.migration_id}: {type(error).__name__}: {error}")
                await self._ear.wait_news(RETRY_S)
                continue
            finally:
                await connection.close()
            if duty is Duty.RESUME:
                return await self._resume(charge)
            if duty is Duty.NOTHING:
                return True
        return not process.is_alive()

    def _see_event(self, event: Event) -> None:
        if event.name == "STOP":
            self._stopped_at_s = boot_s()
        self._ear.news.set()

    async def _watch(self, charge: Charge, connection: Connection) -> Duty:
        """Follow QEMU until the agent is back (WAIT), or something is to be done without QEMU's monitor."""
        while self._ear.is_agent_away and connection.is_open:
            report = await _ask(connection, "query-migrate")
            state = await _ask(connection, "query-status")
            stood_s = boot_s() - self._stopped_at_s
            self._status = str(report.get("status", "none"))
            duty = duty_of(charge, self._status, str(state.get("status")), stood_s)
            if duty is Duty.CANCEL:
                say(f"migration {charge.migration_id}: the guest waits for the agent in vain and goes on here: migrate_cancel")
                await _ask(connection, "migrate_cancel")
            elif duty is Duty.CLAIM:
                if await self._claim(charge, connection):
                    return Duty.NOTHING
            elif duty is not Duty.WAIT:
                return duty
            left_s = charge.max_downtime_s - stood_s
            await self._ear.wait_news(min(LOOK_S, left_s) if left_s > 0 else LOOK_S)
        return Duty.WAIT

    async def _resume(self, charge: Charge) -> bool:
        from agent.guardian.calls import resume  # noqa: PLC0415 - takes 0.1 s and 20 MB, and is hardly ever needed

        while self._ear.is_agent_away:
            if not self._note(charge, keep_paused=charge.keep_paused):  # from then on nobody may say that it was not given away
                await self._ear.wait_news(LOOK_S)
                continue
            say(f"migration {charge.migration_id}: QEMU has sent the guest: asking {charge.peer_address} to run it")
            try:
                await resume(charge)
            except FerryError as error:
                say(f"migration {charge.migration_id}: {error.text}")
                await self._ear.wait_news(LOOK_S)
            else:
                say(f"migration {charge.migration_id}: the guest goes on at {charge.peer_address}")
                return True
        return False

    def _note(self, charge: Charge, *, keep_paused: bool) -> bool:
        try:
            write_note(charge, self._status, keep_paused=keep_paused)
        except OSError as error:
            say(f"migration {charge.migration_id}: {charge.note_path}: {error.strerror}")
            return False
        return True

    async def _claim(self, charge: Charge, connection: Connection) -> bool:
        """Let the guest go on here with the source's token; say whether it does."""
        from agent.guardian.calls import claim  # noqa: PLC0415 - as above

        try:
            claimed = await claim(charge)
        except FerryError as error:
            say(f"migration {charge.migration_id}: {error.text}")
            return False
        if hashlib.sha256(claimed.token).hexdigest() != charge.token_sha256 or not self._ear.is_agent_away:
            return False
        if not self._note(charge, keep_paused=claimed.keep_paused):  # from then on nobody may say that the guest never ran here
            return False
        if charge.has_exports:
            with suppress(ExecuteError):  # they were stopped before
                await _ask(connection, "nbd-server-stop")
        if not claimed.keep_paused:
            await _ask(connection, "cont")
        say(f"migration {charge.migration_id}: the guest goes on here")
        return True


async def _ask(connection: Connection, command: str) -> dict[str, object]:
    async with asyncio.timeout(ANSWER_S):
        answer = await connection.ask(command, None, is_oob=False)
    return answer if isinstance(answer, dict) else {}


def say(text: str) -> None:
    """Tell the agent's log, if anybody still reads it."""
    with suppress(OSError):
        sys.stderr.write(f"guardian: {text}\n")
        sys.stderr.flush()
