"""A migration driven by hand, step by step, where a test has to act between two steps or to lie in one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import grpc

from common.rpc.status import calls_to
from ferry.agent.v1 import migration_pb2 as pb
from ferry.common.v1 import migration_pb2 as common_pb
from tests.e2e.lab import Lab
from tests.e2e.move import Half, wishes
from tests.e2e.waiting import deadline

PERFORM_TIMEOUT_S = 40.0


class Steps:
    """Begin, Prepare, Perform, Finish and Confirm, each called by the test."""

    def __init__(self, lab: Lab, options: common_pb.MigrationOptions | None = None, *, to: str = "host-b", vm: str = "web") -> None:
        self.migration_id = str(uuid4())
        self.options = options or wishes()
        self.vm = vm
        self.source = lab.agents["host-a" if to == "host-b" else "host-b"]
        self.destination = lab.agents[to]
        self.begun = pb.BeginMigrationResponse()
        self.prepared = pb.PrepareMigrationResponse()

    async def begin(self) -> pb.BeginMigrationResponse:
        """Take the VM."""
        request = pb.BeginMigrationRequest(
            request_id=str(uuid4()), epoch=1, migration_id=self.migration_id, vm=self.vm, options=self.options
        )
        with calls_to("the source"):
            self.begun = await self.source.BeginMigration(request)
        return self.begun

    async def prepare(self) -> pb.PrepareMigrationResponse:
        """Make the destination ready."""
        request = pb.PrepareMigrationRequest(
            request_id=str(uuid4()),
            epoch=1,
            migration_id=self.migration_id,
            definition=self.begun.definition,
            resume_token_sha256=self.begun.resume_token_sha256,
            source=self.begun.source,
            options=self.options,
        )
        with calls_to("the destination"):
            self.prepared = await self.destination.PrepareMigration(request)
        return self.prepared

    async def begin_and_prepare(self) -> pb.PrepareMigrationResponse:
        """Take the VM and make the destination ready."""
        await self.begin()
        return await self.prepare()

    def start_perform(self) -> grpc.aio.UnaryStreamCall[pb.PerformMigrationRequest, pb.PerformMigrationResponse]:
        """Start the transfer, which goes on when the call is cancelled."""
        request = pb.PerformMigrationRequest(
            request_id=str(uuid4()),
            epoch=1,
            migration_id=self.migration_id,
            endpoint=self.prepared.endpoint,
            destination_agent_address=self.prepared.agent_address,
            destination_host="host-b",
        )
        return self.source.PerformMigration(request)

    async def perform(self) -> Half:
        """Transfer, and return the source's half when it is handed over or final."""
        half = pb.Migration()
        async with deadline("the end of Perform", timeout_s=PERFORM_TIMEOUT_S):
            with calls_to("the source"):
                async for response in self.start_perform():
                    half = response.migration
        return half

    async def finish_and_confirm(self) -> tuple[Half, Half]:
        """Keep the VM at the destination, and end it at the source."""
        finish = pb.FinishMigrationRequest(request_id=str(uuid4()), epoch=1, migration_id=self.migration_id)
        confirm = pb.ConfirmMigrationRequest(request_id=str(uuid4()), epoch=1, migration_id=self.migration_id)
        with calls_to("the destination"):
            kept = (await self.destination.FinishMigration(finish)).migration
        with calls_to("the source"):
            return kept, (await self.source.ConfirmMigration(confirm)).migration

    async def cancel(self) -> Half:
        """Keep the guest at the source."""
        request = pb.CancelMigrationRequest(request_id=str(uuid4()), epoch=1, migration_id=self.migration_id)
        with calls_to("the source"):
            return (await self.source.CancelMigration(request)).migration

    async def give_up(self) -> None:
        """Undo what was done, on both hosts; what there is not is passed over."""
        abandon = pb.AbandonMigrationRequest(request_id=str(uuid4()), epoch=1, migration_id=self.migration_id)
        if self.prepared.agent_address:
            with calls_to("the destination"):
                await self.destination.AbandonMigration(abandon)
        if self.begun.definition:
            await self.cancel()


@asynccontextmanager
async def steps(lab: Lab, options: common_pb.MigrationOptions | None = None, *, to: str = "host-b") -> AsyncIterator[Steps]:
    """Drive a migration by hand that will not succeed; whatever became of it is undone at the end of the block."""
    by_hand = Steps(lab, options, to=to)
    try:
        yield by_hand
    finally:
        await by_hand.give_up()
