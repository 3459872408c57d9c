"""The hosts of the fleet."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from common.errors import FerryError, InvalidRequest, NotFound, Unreachable, WrongState
from coordinator.agents import Agent, HostView, Presence
from coordinator.config import CoordinatorConfig


@dataclass(frozen=True, slots=True)
class HostState:
    """A host, and its agent's description or why there is none."""

    agent: Agent
    view: HostView | None
    error: str


class Fleet:
    """Every host, by name. Leaving the context closes the channels."""

    def __init__(self, config: CoordinatorConfig) -> None:
        self._agents = {name: Agent(name, host.agent, host.tunnel, config.identity) for name, host in sorted(config.hosts.items())}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Own the channels."""
        for agent in self._agents.values():
            self._stack.push_async_callback(agent.close)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close them."""
        await self._stack.aclose()

    def get(self, name: str) -> Agent:
        """Return a host.

        Raises:
            NotFound: the fleet has none of that name.
        """
        agent = self._agents.get(name)
        if agent is None:
            known = ", ".join(self._agents) or "none; add [hosts.NAME] to the coordinator's config file"
            raise NotFound(f"host {name!r} is unknown; known: {known}", reason="HOST_UNKNOWN", host=name)
        return agent

    def all(self) -> list[Agent]:
        """Return every host."""
        return [*self._agents.values()]

    async def look(self) -> list[HostState]:
        """Ask every agent at once."""
        async with asyncio.TaskGroup() as group:
            looks = [group.create_task(_look(agent)) for agent in self._agents.values()]
        return [look.result() for look in looks]

    async def locate(self, vm: str) -> Agent:
        """Find the one host that has a VM, before those where only its definition stayed.

        Raises:
            NotFound: none of the reachable hosts has it; the unreachable ones are named.
            InvalidRequest: several have it.
        """
        async with asyncio.TaskGroup() as group:
            asked = {agent: group.create_task(_ask_for(agent, vm)) for agent in self._agents.values()}
        answers = {agent: task.result() for agent, task in asked.items()}
        found = {agent: answer for agent, answer in answers.items() if isinstance(answer, Presence)}
        having = [agent for agent, presence in found.items() if presence is not Presence.LEFT] or list(found)
        silent = [answer.text for answer in answers.values() if isinstance(answer, FerryError)]
        if len(having) > 1:
            names = ", ".join(agent.host for agent in having)
            raise InvalidRequest(f"VM {vm} is on several hosts ({names}); say which by --from", reason="VM_AMBIGUOUS", vm=vm)
        if having:
            return having[0]
        if silent:
            raise Unreachable(f"VM {vm} is on none of the hosts that answer; {'; '.join(silent)}", reason="VM_NOT_FOUND", vm=vm)
        raise NotFound(
            f"VM {vm} is on none of the hosts ({', '.join(self._agents) or 'there are none'})", reason="VM_NOT_FOUND", vm=vm
        )

    async def check_movable(self, agent: Agent, vm: str, *, is_offline: bool) -> None:
        """Require that a VM runs on a host; offline, that it does not.

        Raises:
            NotFound: the host has none of that name.
            WrongState: it does not run, or it does.
        """
        presence = await agent.find_vm(vm)
        if presence is None:
            raise NotFound(f"VM {vm} is not on {agent.host}", reason="VM_NOT_FOUND", vm=vm)
        if presence is Presence.RUNS and is_offline:
            raise WrongState(
                f"VM {vm} runs on {agent.host}: --offline moves the definition of a stopped one; without it, its guest is moved",
                reason="VM_RUNNING",
                vm=vm,
            )
        if presence is not Presence.RUNS and not is_offline:
            raise WrongState(
                f"VM {vm} is not running on {agent.host}: its guest cannot be moved; start it first, "
                "or move its definition alone (--offline)",
                reason="VM_NOT_RUNNING",
                vm=vm,
            )

    async def check_destination(self, agent: Agent, *, wants_tunnel: bool) -> None:
        """Require that a destination answers and has what the migration needs.

        Raises:
            Unreachable: its agent does not answer.
            WrongState: a tunnel is wanted and it has none.
        """
        await agent.look()
        if wants_tunnel and not agent.tunnel_address:
            raise WrongState(
                f'host {agent.host} has no tunnel; add `tunnel = "host:port"` to [hosts.{agent.host}] of the coordinator',
                reason="TUNNEL_MISSING",
                host=agent.host,
            )


async def _look(agent: Agent) -> HostState:
    try:
        return HostState(agent, await agent.look(), "")
    except FerryError as error:
        return HostState(agent, None, error.text)


async def _ask_for(agent: Agent, vm: str) -> Presence | FerryError | None:
    try:
        return await agent.find_vm(vm)
    except FerryError as error:
        return error
