"""Plans: both hosts are asked what speaks against a move and what it is going to be; what they make for it goes with the plan."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from common.clock import Clock
from common.errors import FerryError, InvalidRequest
from common.findings import Finding, Severity
from coordinator.agent_plans import Arrival, Departure
from coordinator.agents import Agent
from coordinator.fleet import Fleet

# A guest and a way change; after this long a plan is not laid beside a move any more.
FRESH_S: Final = 600.0
KEPT_COUNT: Final = 200
CLOCKS_DIFFER_S: Final = 1.0
_ORDER: Final = list(Severity)


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan.

    Attributes:
        options, forecast: serialised; without a measurement `forecast` is empty.
    """

    vm_name: str
    vm_uuid: str
    source: str
    destination: str
    options: bytes
    findings: tuple[Finding, ...]
    forecast: bytes
    made_at_s: float


class Planner:
    """Makes plans, and remembers them until their moves begin."""

    def __init__(self, fleet: Fleet, clock: Clock) -> None:
        self._fleet = fleet
        self._clock = clock
        self._plans: OrderedDict[tuple[str, str, bytes], Plan] = OrderedDict()

    def find_forecast(self, vm: str, destination: str, options: bytes) -> bytes:
        """Find what a fresh plan said of a move with the same wishes; empty without one."""
        now_s = self._clock.monotonic_s()
        for plan in reversed(self._plans.values()):
            if vm in {plan.vm_name, plan.vm_uuid} and (plan.destination, plan.options) == (destination, options):
                return plan.forecast if now_s - plan.made_at_s <= FRESH_S else b""
        return b""

    async def plan(self, vm: str, source: str, destination: str, options: bytes) -> AsyncGenerator[str | Plan]:
        """Say what is done, and at last give the plan.

        Raises:
            NotFound: no host has the VM, or there is no such host.
            InvalidRequest: source and destination are one host, or a wish can never be fulfilled.
            Unreachable: the source's agent does not answer.
        """
        there = self._fleet.get(destination)
        here = self._fleet.get(source) if source else await self._fleet.locate(vm)
        if here is there:
            raise InvalidRequest(
                f"VM {vm} is on {here.host} already: source and destination are one host", reason="SAME_HOST", host=here.host
            )
        plan_id = secrets.token_hex(8)
        yield f"looking at {vm} on {here.host} and at {there.host}"
        async with AsyncExitStack() as stack:
            departure = await stack.enter_async_context(here.plan_departure())
            seen = await departure.look(plan_id, vm, options)
            seen_at_s = self._clock.monotonic_s()
            findings = [*seen.findings]
            arrival = None
            try:
                await there.look()
                if seen.source:
                    arrival = await stack.enter_async_context(there.plan_arrival(plan_id, seen, options))
            except FerryError as error:
                findings.append(Finding(error.reason, Severity.BLOCKER, "destination", error.text))
            forecast = b""
            if arrival is not None:
                skew_s = (arrival.now_s - seen.now_s) - (self._clock.monotonic_s() - seen_at_s)
                findings += [*arrival.findings, *_clocks(here, there, skew_s)]
                yield "watching the guest write, and measuring the way"
                more, forecast = await _measure(departure, arrival, there)
                findings += more
        findings.sort(key=lambda finding: _ORDER.index(finding.severity))
        plan = Plan(
            seen.vm_name,
            seen.vm_uuid,
            here.host,
            there.host,
            options,
            tuple(findings),
            forecast,
            self._clock.monotonic_s(),
        )
        self._keep(plan)
        yield plan

    def _keep(self, plan: Plan) -> None:
        key = (plan.vm_uuid, plan.destination, plan.options)
        self._plans.pop(key, None)
        self._plans[key] = plan
        while len(self._plans) > KEPT_COUNT:
            self._plans.popitem(last=False)


async def _measure(departure: Departure, arrival: Arrival, there: Agent) -> tuple[tuple[Finding, ...], bytes]:
    try:
        return await departure.measure(arrival, there.address)
    except FerryError as error:
        return (Finding(error.reason, Severity.BLOCKER, "source", error.text),), b""


def _clocks(here: Agent, there: Agent, skew_s: float) -> tuple[Finding, ...]:
    if abs(skew_s) < CLOCKS_DIFFER_S:
        return ()
    text = (
        f"the clock of {there.host} is {abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} that of {here.host}: "
        "times in traces and logs do not fit; keep both by NTP"
    )
    return (Finding("CLOCKS_DIFFER", Severity.WARNING, "", text),)
