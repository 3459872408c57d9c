"""The migrations of this coordinator as they are now: changed in one place, written to the journal, followed by many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Final

import structlog

from common.errors import InvalidRequest, NotFound
from common.storage import StorageFailed
from coordinator.halves import Half, Move, MoveState
from coordinator.journal import Journal

RETRY_S: Final = 1.0

_log = structlog.get_logger()
_TOLD = ("state", "location", "step", "error", "error_reason", "cancel_wanted", "is_tidy", "epoch")


class Board:
    """Every unfinished migration, and through the journal every past one."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._moves: dict[str, Move] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self._unwritten: set[str] = set()
        self._over: set[str] = set()
        self._has_unwritten = asyncio.Event()

    async def run(self) -> None:
        """Write what could not be written when it changed, once there is room; until cancelled."""
        while True:
            await self._has_unwritten.wait()
            await asyncio.sleep(RETRY_S)
            self._has_unwritten.clear()
            self.write_all()
            for migration_id in [one for one in self._over if one not in self._unwritten]:
                self.drop(migration_id)

    def write_all(self) -> None:
        """Write what could not be written when it changed, as far as there is room."""
        for migration_id in tuple(self._unwritten):
            self._unwritten.discard(migration_id)
            self._write(self._moves[migration_id])

    def put(self, move: Move) -> None:
        """Take a migration on; durable on return.

        Raises:
            StorageFailed: it cannot be put on record; it was not taken on.
        """
        self._journal.save(move)
        self._moves[move.migration_id] = move
        self._wake(move.migration_id)

    def take_up(self, move: Move) -> None:
        """Take a migration on that is on record already."""
        self._moves[move.migration_id] = move
        self._write(move)
        self._wake(move.migration_id)

    def _write(self, move: Move) -> None:
        """Write a migration; where the file system refuses, later: what the agents do does not wait for the journal."""
        try:
            self._journal.save(move)
        except StorageFailed as failure:
            _log.error("migration not on record", migration=move.migration_id, error=failure.text)
            self._unwritten.add(move.migration_id)
            self._has_unwritten.set()
        else:
            self._unwritten.discard(move.migration_id)

    def unfinished(self) -> list[Move]:
        """Return the migrations that have something left to do, from before this coordinator began."""
        return self._journal.unfinished()

    def step(self, move: Move, name: str) -> AbstractContextManager[None]:
        """Commit the intent of a step before the block and its result after it."""
        return self._journal.step(move, name)

    def get(self, id_or_beginning: str) -> Move:
        """Return a migration.

        Raises:
            NotFound: no id begins so.
            InvalidRequest: several do.
        """
        if id_or_beginning in self._moves:
            return self._moves[id_or_beginning]
        if not id_or_beginning:
            raise InvalidRequest("migration id is empty", reason="MIGRATION_ID_INVALID")
        found = self._journal.find(id_or_beginning)
        if not found:
            raise NotFound(
                f"migration {id_or_beginning[:80]} is unknown; `ferry migration ls` lists them", reason="MIGRATION_UNKNOWN"
            )
        if len(found) > 1:
            names = ", ".join(move.migration_id for move in found)
            raise InvalidRequest(f"migration {id_or_beginning}: several begin so: {names}", reason="MIGRATION_AMBIGUOUS")
        return self._moves.get(found[0].migration_id, found[0])

    def is_under_way(self, migration_id: str) -> bool:
        """Say whether this coordinator has something left to do for a migration."""
        return migration_id in self._moves

    def find(self, migration_id: str) -> Move | None:
        """Find a migration, past ones included."""
        found = (move for move in self._journal.find(migration_id) if move.migration_id == migration_id)
        return self._moves.get(migration_id) or next(found, None)

    def newest(self, vm: str, count: int) -> list[Move]:
        """Return migrations, the newest first."""
        return [self._moves.get(move.migration_id, move) for move in self._journal.newest(vm, count)]

    def find_request(self, request_id: str) -> Move | None:
        """Find the migration that a request started."""
        move = self._journal.find_request(request_id)
        return move and self._moves.get(move.migration_id, move)

    def active_of(self, vm: str) -> Move | None:
        """Find the migration that is moving a VM now."""
        moving = (move for move in self._moves.values() if not move.state.is_final)
        return next((move for move in moving if vm in {move.vm_name, move.vm_uuid}), None)

    async def wait_undone(self, move: Move) -> None:
        """Wait until nothing is left to undo of earlier migrations of the same VM; has no deadline of its own."""
        while True:
            ended = (one for one in self._moves.values() if one.state.is_final and one.migration_id != move.migration_id)
            left = next((one for one in ended if not one.is_tidy and move.vm_name in {one.vm_name, one.vm_uuid}), None)
            if left is None:
                return
            await self._changed.setdefault(left.migration_id, asyncio.Event()).wait()

    def change(self, migration_id: str, **changes: object) -> Move:
        """Change a migration, wake its followers, and write it when more than numbers changed."""
        before = self._moves[migration_id]
        after = replace(before, **changes)  # type: ignore[arg-type]  # replace() checks the names
        if after == before:
            return before
        self._moves[migration_id] = after
        if any(getattr(before, name) != getattr(after, name) for name in _TOLD):
            self._write(after)
            _log.info(
                "migration",
                migration=migration_id,
                vm=after.vm_name,
                state=after.state.name,
                guest=after.location.name,
                step=after.step,
                error=after.error,
            )
        self._wake(migration_id)
        return after

    def see(self, migration_id: str, half: Half) -> Move:
        """Take over what the source says, without judging it."""
        before = self._moves[migration_id]
        return self.change(
            migration_id,
            vm_name=half.vm_name or before.vm_name,
            vm_uuid=half.vm_uuid or before.vm_uuid,
            location=half.location,
            source_phase=half.phase,
            status=half.status,
            options=half.options or before.options,
            progress=half.progress or before.progress,
            downtime=half.downtime or before.downtime,
            phases=half.phases or before.phases,
            warnings=tuple(dict.fromkeys((*before.warnings, *half.warnings))),
        )

    def drop(self, migration_id: str) -> None:
        """Keep a finished migration in the journal alone."""
        move = self._moves[migration_id]
        self._write(move)
        if migration_id in self._unwritten:
            self._over.add(migration_id)
            return
        self._over.discard(migration_id)
        del self._moves[migration_id]
        self._wake(migration_id)
        self._changed.pop(migration_id, None)

    async def follow(self, id_or_beginning: str) -> AsyncIterator[Move]:
        """Yield a migration now and after every change, until it is final; the latest state wins."""
        migration_id = self.get(id_or_beginning).migration_id
        while True:
            move = self.get(migration_id)
            if move.state.is_final:
                yield move
                return
            changed = self._changed.setdefault(migration_id, asyncio.Event())
            yield move
            await changed.wait()

    def _wake(self, migration_id: str) -> None:
        changed = self._changed.pop(migration_id, None)
        if changed is not None:
            changed.set()


def state_of(half: Half) -> MoveState:
    """Say how far the whole is, going by the source."""
    return {
        "Begun": MoveState.PREPARING,
        "Mirroring": MoveState.TRANSFERRING,
        "Connecting": MoveState.TRANSFERRING,
        "Transferring": MoveState.TRANSFERRING,
        "Settling": MoveState.SWITCHING,
        "Switching": MoveState.SWITCHING,
        "Leaving": MoveState.TRANSFERRING,
        "Crossing": MoveState.SWITCHING,
        "Following": MoveState.POST_COPY,
        "Broken": MoveState.POST_COPY,
        "Refused": MoveState.SWITCHING,
        "Losing": MoveState.POST_COPY,
        "Sent": MoveState.SWITCHING,
        "HandedOver": MoveState.FINISHING,
        "Retiring": MoveState.FINISHING,
        "Retired": MoveState.FINISHING,
        "Cancelling": MoveState.CANCELLING,
        "Keeping": MoveState.CANCELLING,
    }.get(half.phase, MoveState.CANCELLING)
