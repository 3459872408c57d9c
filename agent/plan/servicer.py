"""The gRPC edge of plans: decode, call, encode. What a plan needs ends with its call; errors become statuses in an interceptor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc

from agent import wire, wire_facts, wire_plan
from agent.migration.order import Offer, Wish
from agent.migration.record import check_migration_id
from agent.migration.surroundings import Surroundings
from agent.plan.arrival import arrival
from agent.plan.departure import Departure
from common.errors import InvalidRequest
from ferry.agent.v1 import plan_service_pb2 as pb
from ferry.agent.v1 import plan_service_pb2_grpc as rpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

# Nothing hangs on a plan, so no epoch and no token are worth sending.
_EPOCH = 1
_NO_DIGEST = bytes(32)


class PlanServicer(rpc.PlanServiceServicer):
    """Answers about moves that have not begun."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around

    async def PlanDeparture(
        self, request_iterator: AsyncIterator[pb.PlanDepartureRequest], context: Context
    ) -> AsyncIterator[pb.PlanDepartureResponse]:
        """Look at the guest, then measure."""
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None or not first.HasField("look"):
            raise InvalidRequest("the first request has to be `look`", reason="VALUE_INVALID")
        asked = first.look
        check_migration_id(asked.plan_id)
        xml = asked.options.destination_domain_xml
        departure = Departure(self._around, Wish(asked.plan_id, asked.vm, wire.options(asked.options), _EPOCH, xml))
        try:
            seen = await departure.look()
            yield pb.PlanDepartureResponse(
                seen=pb.PlanDepartureResponse.Seen(
                    findings=[wire_plan.finding(one) for one in seen.findings],
                    vm_name=seen.vm_name,
                    vm_uuid=seen.vm_uuid,
                    definition=seen.definition,
                    source=None if seen.facts is None else wire_facts.source_facts_message(seen.facts),
                    now=wire.timestamp(seen.now_s),
                )
            )
            second = await anext(requests, None)
            if second is None:
                return
            endpoint = wire.endpoint(second.measure.endpoint) if second.measure.HasField("endpoint") else None
            copied = tuple(second.measure.copied_disks)
            findings, found = await departure.measure(endpoint, second.measure.destination_agent_address, copied)
            yield pb.PlanDepartureResponse(
                measured=pb.PlanDepartureResponse.Measured(
                    findings=[wire_plan.finding(one) for one in findings],
                    forecast=None if found is None else wire_plan.forecast(found),
                )
            )
        finally:
            departure.close()

    async def PlanArrival(self, request: pb.PlanArrivalRequest, context: Context) -> AsyncIterator[pb.PlanArrivalResponse]:
        """Look whether the guest could come, and listen until the caller has measured."""
        check_migration_id(request.plan_id)
        offer = Offer(
            request.plan_id,
            wire.options(request.options),
            wire_facts.source_facts(request.source),
            request.definition,
            _NO_DIGEST,
            _EPOCH,
        )
        async with arrival(self._around, offer) as found:
            yield pb.PlanArrivalResponse(
                findings=[wire_plan.finding(one) for one in found.findings],
                endpoint=None if found.endpoint is None else wire.endpoint_message(found.endpoint),
                now=wire.timestamp(found.now_s),
                copied_disks=found.copied_disks,
            )
            await asyncio.Event().wait()  # until the call is cancelled
