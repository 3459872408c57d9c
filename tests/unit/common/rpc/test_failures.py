"""Failures that are told in an error's own words, a span's status, or not at all."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from common import errors, pki
from common.errors import Bug, Busy, FerryError, NotFound, Unreachable, WrongState
from common.identity import Identity, Role
from common.pki import init_authority, issue
from common.rpc import tracing
from common.rpc.channel import open_channel
from common.rpc.server import Allowed, serve
from common.rpc.status import calls_to, code_of, error_of, status_of
from ferry.agent.v1 import agent_service_pb2_grpc as rpc
from ferry.agent.v1.host_pb2 import GetHostRequest
from ferry.agent.v1.migration_pb2 import PerformMigrationRequest
from ferry.agent.v1.vm_pb2 import ListVmsRequest
from tests.unit.common.rpc.echo import echo

PEER = "the agent of host-b"
TIMEOUT_S = 5.0


@pytest.fixture
def finished(monkeypatch):
    """Keep the spans of this test apart: the process has one provider for good."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    return exporter.get_finished_spans


class SpecialBusy(Busy):
    default_reason = "VM_BUSY"


async def test_a_narrower_error_arrives_as_its_category_with_its_reason():
    async def fail(_context: Any) -> None:
        raise SpecialBusy("vm web is busy")

    async with echo(fail) as stub:
        with pytest.raises(Busy) as caught, calls_to(PEER):
            await stub.GetHost(GetHostRequest(), timeout=TIMEOUT_S)

    assert caught.value.reason == "VM_BUSY"


async def test_a_fact_may_be_named_like_a_part_of_the_error():
    async def fail(_context: Any) -> None:
        error = NotFound("no vm")
        error.facts = {"text": "x", "reason": "y", "vm": "web"}
        raise error

    async with echo(fail) as stub:
        with pytest.raises(NotFound) as caught, calls_to(PEER):
            await stub.GetHost(GetHostRequest(), timeout=TIMEOUT_S)

    assert caught.value.facts == {"vm": "web"}


async def test_a_mistake_in_a_stream_is_told_without_its_text():
    async def fail(_context: Any) -> None:
        raise KeyError("a secret")

    async with echo(fail) as stub:
        responses = aiter(stub.PerformMigration(PerformMigrationRequest(), timeout=TIMEOUT_S))
        await anext(responses)
        with pytest.raises(Bug) as caught, calls_to(PEER):
            await anext(responses)

    assert "secret" not in caught.value.text


async def test_a_mistake_is_told_with_the_trace_it_happened_in():
    async def fail(_context: Any) -> None:
        raise KeyError

    with TracerProvider().get_tracer("test").start_as_current_span("caller") as span:
        async with echo(fail) as stub:
            with pytest.raises(Bug) as caught, calls_to(PEER):
                await stub.GetHost(GetHostRequest(), timeout=TIMEOUT_S)

    assert trace.format_trace_id(span.get_span_context().trace_id) in caught.value.text


async def test_a_call_that_a_peer_lacks_says_that_it_is_of_another_version():
    async with (
        serve("127.0.0.1:0", None, [], allowed=Allowed(frozenset(Role))) as port,
        open_channel(f"127.0.0.1:{port}", None) as channel,
    ):
        with pytest.raises(WrongState, match="of another version") as caught, calls_to(PEER):
            await rpc.AgentServiceStub(channel).ListVms(ListVmsRequest(), timeout=TIMEOUT_S)

    assert caught.value.reason == "PEER_TOO_OLD"


async def test_a_failed_call_is_an_error_in_both_spans(finished):
    async def fail(_context: Any) -> None:
        raise NotFound("vm web is unknown")

    async with echo(fail) as stub:
        with pytest.raises(NotFound), calls_to(PEER):
            await stub.GetHost(GetHostRequest(), timeout=TIMEOUT_S)

    statuses = {span.kind: (span.status.status_code, span.status.description) for span in finished()}
    assert statuses[SpanKind.SERVER] == (StatusCode.ERROR, "vm web is unknown")
    assert statuses[SpanKind.CLIENT] == (StatusCode.ERROR, "NOT_FOUND")


async def test_a_call_that_works_is_no_error_in_either_span(finished):
    async with echo() as stub:
        await stub.GetHost(GetHostRequest(), timeout=TIMEOUT_S)

    assert {span.status.status_code for span in finished()} == {StatusCode.UNSET}


@pytest.mark.parametrize(
    ("details", "words"),
    [
        ("Failed to connect to remote host: connect() timed out", "connect() timed out"),
        ("tcp handshaker shutdown", "no answer"),
        ("Handshake read failed (Endpoint closing)", "no answer"),
        ("Ssl handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED", "certificates do not fit"),
        ("Failed to connect to remote host: connect: Connection refused (111)", "is it running?"),
    ],
)
def test_a_peer_that_cannot_be_reached_is_told_by_what_grpc_says_of_it(details: str, words: str):
    text = f"failed to connect to all addresses; last error: UNKNOWN: ipv4:192.0.2.1:7701: {details}"
    call = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details=text)

    assert words in error_of(call, "agent").text


def test_errors_of_ours_pass_through():
    with pytest.raises(NotFound, match="gone"), calls_to(PEER):
        raise NotFound("gone")


def test_every_category_has_a_code_of_its_own():
    categories = [category for category in FerryError.__subclasses__() if category.__module__ == errors.__name__]

    codes = [code_of(category("text")) for category in categories]

    assert len(set(codes)) == len(categories)
    assert grpc.StatusCode.UNKNOWN not in codes


def test_what_quotes_something_endless_is_cut_so_that_it_arrives():
    status = status_of(NotFound("no such VM: " + "ä" * 50_000, vm="ä" * 50_000))

    assert status.code is grpc.StatusCode.NOT_FOUND
    assert status.details.startswith("no such VM: ää")
    assert status.details.endswith(" ...")
    assert sum(len(key) + len(value) for key, value in status.trailing_metadata) < 8_000


@pytest.mark.parametrize(
    ("lifetime", "backdated", "told"),
    [(-1, 10, "its certificate has expired"), (800, -10, "its certificate is not valid yet by this machine's clock")],
    ids=["expired", "of the future"],
)
async def test_a_server_whose_certificate_is_out_of_date_is_told_as_that(lifetime, backdated, told, tmp_path: Path, monkeypatch):
    init_authority(tmp_path / "ca")
    issue(tmp_path / "ca", tmp_path / "client", "me", Role.OPERATOR, [])
    monkeypatch.setattr(pki, "CERTIFICATE_LIFETIME", timedelta(days=lifetime))
    monkeypatch.setattr(pki, "BACKDATED", timedelta(days=backdated))
    issue(tmp_path / "ca", tmp_path / "server", "host-b", Role.AGENT, ["127.0.0.1"])
    authority, certificate, key = Identity.in_directory(tmp_path / "server").read()
    server = grpc.aio.server()
    credentials = grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()

    async with open_channel(f"127.0.0.1:{port}", Identity.in_directory(tmp_path / "client")) as channel:
        with pytest.raises(Unreachable, match=told), calls_to("host-b"):
            await rpc.AgentServiceStub(channel).GetHost(GetHostRequest(), timeout=TIMEOUT_S)
    await server.stop(0)
