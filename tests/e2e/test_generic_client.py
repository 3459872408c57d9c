"""A client that knows nothing but the address learns everything by reflection, and drives a migration from Begin to Confirm."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from uuid import uuid4

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from common.errors import Busy
from common.identity import Identity
from tests.e2e.lab import Lab
from tests.e2e.steps import Steps

TIMEOUT_S = 30.0


class GenericClient:
    """Calls any method of a server with JSON, as grpcurl does."""

    def __init__(self, address: str, identity: Identity | None) -> None:
        assert identity is not None
        authority, certificate, key = identity.read()
        self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, key, certificate))
        self._pool = DescriptorPool(ProtoReflectionDescriptorDatabase(self._channel))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def call(self, service: str, method: str, **request: Any) -> dict[str, Any]:
        """Call a method that gives one answer."""
        path, message, decode = self._method(service, method, request)
        answer = self._channel.unary_unary(path, type(message).SerializeToString, decode)(message, timeout=TIMEOUT_S)
        return json_format.MessageToDict(answer, preserving_proto_field_name=True)

    def follow(self, service: str, method: str, **request: Any) -> Iterator[dict[str, Any]]:
        """Call a method that gives a stream of answers."""
        path, message, decode = self._method(service, method, request)
        for answer in self._channel.unary_stream(path, type(message).SerializeToString, decode)(message, timeout=TIMEOUT_S):
            yield json_format.MessageToDict(answer, preserving_proto_field_name=True)

    def _method(self, service: str, name: str, request: dict[str, Any]) -> tuple[str, Any, Any]:
        method = self._pool.FindServiceByName(service).FindMethodByName(name)
        message = json_format.ParseDict(request, message_factory.GetMessageClass(method.input_type)())
        return f"/{service}/{name}", message, message_factory.GetMessageClass(method.output_type).FromString


def move(source: GenericClient, destination: GenericClient, vm: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Move a VM, and return the last of Perform, the destination's half and the source's."""
    agent, migration_id = "ferry.agent.v1.AgentService", str(uuid4())
    common = {"epoch": 1, "migration_id": migration_id, "options": {"transport": "TRANSPORT_DIRECT", "multifd_channel_count": 2}}
    begun = source.call(agent, "BeginMigration", request_id=str(uuid4()), vm=vm, **common)
    given = {name: begun[name] for name in ("definition", "resume_token_sha256", "source")}
    prepared = destination.call(agent, "PrepareMigration", request_id=str(uuid4()), **given, **common)
    del common["options"]
    performing = source.follow(
        agent,
        "PerformMigration",
        request_id=str(uuid4()),
        endpoint=prepared["endpoint"],
        destination_agent_address=prepared["agent_address"],
        **common,
    )
    *_, performed = performing
    finished = destination.call(agent, "FinishMigration", request_id=str(uuid4()), **common)
    confirmed = source.call(agent, "ConfirmMigration", request_id=str(uuid4()), **common)
    return performed["migration"], finished["migration"], confirmed["migration"]


async def test_a_generic_client_drives_a_migration_by_reflection_alone(lab: Lab):
    guest = await lab.start_guest()
    source, destination = (GenericClient(lab.fleet.agent_address(host), lab.fleet.identity("operator")) for host in lab.agents)

    try:
        performed, finished, confirmed = await asyncio.to_thread(move, source, destination, guest.name)
    finally:
        source.close()
        destination.close()

    assert performed["state"] == "STATE_HANDED_OVER"
    assert {leg["name"] for leg in performed["downtime"]["legs"]}
    assert finished["guest_location"] == "GUEST_LOCATION_DESTINATION"
    assert confirmed["state"] == "STATE_SUCCEEDED"
    assert confirmed["is_final"]
    await guest.console.wait_sweeps(1)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


async def test_a_generic_client_moves_a_vm_through_the_coordinator(lab: Lab):
    guest = await lab.start_guest()
    client = GenericClient(lab.fleet.coordinator_address, lab.fleet.identity("operator"))
    service = "ferry.coordinator.v1.CoordinatorService"

    def move_it() -> dict[str, Any]:
        started = client.call(service, "StartMigration", request_id=str(uuid4()), vm=guest.name, destination_host="host-b")
        *_, last = client.follow(service, "WatchMigration", migration_id=started["migration"]["id"])
        return dict(last["migration"])

    try:
        ended = await asyncio.to_thread(move_it)
    finally:
        client.close()

    assert ended["state"] == "STATE_SUCCEEDED", ended["error"]
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


async def assert_done_once(step: Callable[[], Awaitable[object]]) -> None:
    """Call a step three times at once; whoever is not refused gets the same answer."""

    async def call() -> object:
        try:
            return await step()
        except Busy:
            return None

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(call()) for _ in range(3)]
    answers = [task.result() for task in tasks if task.result() is not None]
    assert answers
    assert all(answer == answers[0] for answer in answers)


async def test_a_step_that_comes_several_times_at_once_is_done_once(lab: Lab):
    guest = await lab.start_guest()
    by_hand = Steps(lab)

    await assert_done_once(by_hand.begin)
    await by_hand.begin()  # a repeat gets the first answer
    await assert_done_once(by_hand.prepare)
    await by_hand.prepare()
    await by_hand.perform()
    await by_hand.finish_and_confirm()

    await lab.assert_only_on("host-b", guest)
