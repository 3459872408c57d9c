"""A move by the command line as its user sees it, and its story in a collector of somebody else's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc

from deploy.lab.fleet import Fleet
from tests.e2e.guest import Plan, domain
from tests.guests.console import Console

Spans = dict[str, set[tuple[str, str]]]


class Collector(rpc.TraceServiceServicer):
    """An OTLP receiver: (trace id, name) of each span by service."""

    def __init__(self) -> None:
        self.spans: Spans = {}

    def Export(self, request: pb.ExportTraceServiceRequest, context: Any) -> pb.ExportTraceServiceResponse:  # noqa: N802
        for resource in request.resource_spans:
            service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            for scope in resource.scope_spans:
                self.spans.setdefault(service, set()).update((span.trace_id.hex(), span.name) for span in scope.spans)
        return pb.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    receiver = Collector()
    rpc.add_TraceServiceServicer_to_server(receiver, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield receiver, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_move_by_the_command_line_is_one_story(tmp_path_factory, collector):
    receiver, endpoint = collector
    directory: Path = tmp_path_factory.mktemp("f")
    with Fleet(directory, otlp_endpoint=endpoint) as fleet:
        definition = directory / "web.xml"
        definition.write_bytes(domain(Plan(), directory))
        fleet.ferry("vm", "define", str(definition), "--host", "host-a", check=True)
        fleet.ferry("vm", "start", "web", check=True)
        with Console(directory / "serial.log") as console:
            asyncio.run(console.wait_ticks(5))

            there = fleet.ferry("migrate", "web", "--to", "host-b", "-o", "json", check=True)
            back = fleet.ferry("migrate", "web", "--to", "host-a", "--tunnel", "-o", "json", check=True)

            asyncio.run(console.wait_ticks(5))
            console.assert_continuous()
        moved = json.loads(there.stdout)
        tree = fleet.ferry("migration", "show", moved["id"], "--trace", check=True).stdout
        listed = json.loads(fleet.ferry("vm", "ls", "-o", "json", check=True).stdout)

    assert moved["state"] == "SUCCEEDED"
    assert moved["guest_location"] == "DESTINATION"
    assert [leg["name"] for leg in moved["downtime"]["legs"]] == ["stop", "device", "resume"]
    assert json.loads(back.stdout)["options"]["transport"] == "TUNNEL"
    assert [(vm["host"], vm["state"]) for vm in listed] == [("host-a", "RUNNING")]
    wanted = ["ferry migrate", "migration.prepare", "migration.precopy", "migration.pass", "migration.downtime.resume", "qmp cont"]
    assert [name for name in wanted if name not in tree] == []
    trace_id = moved["trace_id"]
    for service, name in (
        ("ferry", "ferry migrate"),
        ("ferry-coordinator", "migration.perform"),
        ("ferry-agent", "migration.downtime"),
        ("ferry-agent", "qmp migrate-continue"),
    ):
        assert (trace_id, name) in receiver.spans[service]
