"""The agents' parts of a plan, as the coordinator asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Self

import grpc

from common.errors import Unreachable
from common.findings import Finding, Severity
from ferry.agent.v1 import migration_pb2 as pb
from ferry.agent.v1 import plan_service_pb2 as plan_pb
from ferry.common.v1 import migration_pb2 as common_pb2
from ferry.common.v1 import plan_pb2 as plan_common_pb2

PLAN_TIMEOUT_S: Final = 60.0
_NS: Final = 1_000_000_000
_SEVERITIES: Final = {
    plan_common_pb2.Finding.SEVERITY_BLOCKER: Severity.BLOCKER,
    plan_common_pb2.Finding.SEVERITY_WARNING: Severity.WARNING,
    plan_common_pb2.Finding.SEVERITY_NOTE: Severity.NOTE,
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What the source is like before a move.

    Attributes:
        definition, source: for the destination; empty when the guest cannot be described.
        now_s: the source's wall clock.
    """

    findings: tuple[Finding, ...]
    vm_name: str
    vm_uuid: str
    definition: bytes
    source: bytes
    now_s: float


@dataclass(frozen=True, slots=True)
class Arrival:
    """What the destination is like before a move; the endpoint of a measurement holds secrets."""

    findings: tuple[Finding, ...]
    endpoint: bytes | None
    now_s: float
    copied_disks: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Show no secret."""
        return f"Arrival({len(self.findings)} findings)"

    @classmethod
    def of(cls, answer: plan_pb.PlanArrivalResponse) -> Self:
        """Decode the destination's answer."""
        endpoint = answer.endpoint.SerializeToString() if answer.HasField("endpoint") else None
        return cls(findings_of(answer.findings), endpoint, answer.now.ToNanoseconds() / _NS, tuple(answer.copied_disks))


class Departure:
    """The source's part of a plan, on an open call."""

    def __init__(
        self,
        call: grpc.aio.StreamStreamCall[plan_pb.PlanDepartureRequest, plan_pb.PlanDepartureResponse],
        refusals: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._call = call
        self._refusals = refusals

    async def look(self, plan_id: str, vm: str, options: bytes) -> Seen:
        """Look at the guest."""
        wished = common_pb2.MigrationOptions.FromString(options)
        look = plan_pb.PlanDepartureRequest.Look(vm=vm, options=wished, plan_id=plan_id)
        seen = (await self._ask(plan_pb.PlanDepartureRequest(look=look))).seen
        return Seen(
            findings_of(seen.findings),
            seen.vm_name,
            seen.vm_uuid,
            seen.definition,
            seen.source.SerializeToString() if seen.HasField("source") else b"",
            seen.now.ToNanoseconds() / _NS,
        )

    async def measure(self, arrival: Arrival, agent_address: str) -> tuple[tuple[Finding, ...], bytes]:
        """Measure; return what speaks against the move and a serialised forecast, empty without one."""
        message = None if arrival.endpoint is None else pb.Endpoint.FromString(arrival.endpoint)
        measure = plan_pb.PlanDepartureRequest.Measure(
            endpoint=message, destination_agent_address=agent_address, copied_disks=arrival.copied_disks
        )
        measured = (await self._ask(plan_pb.PlanDepartureRequest(measure=measure))).measured
        return findings_of(measured.findings), measured.forecast.SerializeToString() if measured.HasField("forecast") else b""

    async def _ask(self, request: plan_pb.PlanDepartureRequest) -> plan_pb.PlanDepartureResponse:
        with self._refusals():
            async with asyncio.timeout(PLAN_TIMEOUT_S):
                await self._call.write(request)
                answer = await self._call.read()
        if not isinstance(answer, plan_pb.PlanDepartureResponse):
            raise Unreachable("the source's agent ended the plan", reason="PEER_UNREACHABLE")
        return answer


def findings_of(messages: Iterable[plan_common_pb2.Finding]) -> tuple[Finding, ...]:
    """Decode what speaks against a move; of a weight that only a newer agent knows it is a warning."""
    return tuple(Finding(one.code, _SEVERITIES.get(one.severity, Severity.WARNING), one.side, one.text) for one in messages)
