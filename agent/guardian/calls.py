"""What a guardian says to the other host's agent, with the certificate of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from agent.guardian.charge import Charge
from common.identity import Identity
from common.rpc.channel import open_channel
from common.rpc.status import calls_to
from ferry.agent.v1 import agent_service_pb2_grpc as rpc
from ferry.agent.v1 import migration_pb2 as pb

RESUME_TIMEOUT_S: Final = 6.0
CLAIM_TIMEOUT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Claimed:
    """A guest that the source has given away."""

    token: bytes
    keep_paused: bool


async def resume(charge: Charge) -> None:
    """Ask the destination's agent to run the guest.

    Raises:
        FerryError: it does not, or may have.
    """
    request = pb.ResumeMigrationRequest(
        request_id=f"{charge.migration_id}-resume",
        migration_id=charge.migration_id,
        resume_token=bytes.fromhex(charge.token),
        keep_paused=charge.keep_paused,
    )
    async with _agent(charge) as stub:
        await stub.ResumeMigration(request, timeout=RESUME_TIMEOUT_S)


async def claim(charge: Charge) -> Claimed:
    """Ask the source's agent for the guest.

    Raises:
        FerryError: the guest was not sent, or nobody answers.
    """
    async with _agent(charge) as stub:
        answer = await stub.ClaimGuest(pb.ClaimGuestRequest(migration_id=charge.migration_id), timeout=CLAIM_TIMEOUT_S)
    return Claimed(answer.resume_token, answer.keep_paused)


@asynccontextmanager
async def _agent(charge: Charge) -> AsyncIterator[rpc.AgentServiceStub]:
    identity = Identity(*map(Path, charge.certificates)) if charge.certificates else None
    channel: grpc.aio.Channel = open_channel(charge.peer_address, identity)
    try:
        with calls_to(f"the agent at {charge.peer_address}"):
            yield rpc.AgentServiceStub(channel)
    finally:
        await channel.close()
