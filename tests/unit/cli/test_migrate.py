"""`ferry migrate` and Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import pytest

from common.errors import NotFound, Unreachable, WrongState
from coordinator.cli.app import run
from coordinator.cli.exits import ExitCode
from ferry.common.v1 import post_copy_pb2 as post_copy_pb
from ferry.coordinator.v1 import coordinator_service_pb2 as pb
from tests.unit.cli.fake_fleet import ID, migration

M = pb.Migration
RUNNING = migration(M.STATE_TRANSFERRING)
MOVED = migration(M.STATE_SUCCEEDED, M.GUEST_LOCATION_DESTINATION)
MOVED.downtime.total.FromMilliseconds(12)
MOVED.downtime.legs.add(name="stop").duration.FromMilliseconds(2)
MOVED.downtime.legs.add(name="device").duration.FromMilliseconds(10)
MOVED.phases.add(name="transferring").duration.FromSeconds(3)
CANCELLED = migration(M.STATE_CANCELLED, error="cancelled by a user", error_reason="CANCELLED")


async def test_a_move_that_succeeds_ends_with_0_and_its_costs_on_stdout(fleet):
    fleet.coordinator.story = [RUNNING, MOVED]
    fleet.coordinator.is_flowing.set()

    typed = await fleet.ferry("migrate", "web", "--to", "host-b")

    assert typed.code is ExitCode.DONE
    assert "web moved from host-a to host-b in 4.00 s; it stood still for 12.0 ms" in typed.err
    assert "transferring" in typed.out
    assert [line.split() for line in typed.out.splitlines() if line.startswith("  ")] == [
        ["stop", "2.00", "ms"],
        ["device", "10.0", "ms"],
    ]


async def test_json_of_a_move_has_units_in_its_names_and_numbers_for_times(fleet):
    fleet.coordinator.story = [MOVED]

    typed = await fleet.ferry("migrate", "web", "--to", "host-b", "-o", "json")

    shown = json.loads(typed.out)
    assert shown["state"] == "SUCCEEDED"
    assert shown["downtime"]["total_s"] == 0.012
    assert shown["create_time"] == "2023-11-14T22:13:20Z"
    assert shown["progress"] is None


async def test_what_is_wished_of_post_copy_travels_as_it_was_typed(fleet):
    fleet.coordinator.story = [MOVED]

    await fleet.ferry(
        *("migrate", "web", "--to", "host-b", "--postcopy", "after-first-pass"),
        *("--postcopy-bandwidth", "8MiB/s", "--postcopy-preempt"),
    )
    await fleet.ferry("migrate", "web", "--to", "host-b")

    wished, plain = (one.options for one in fleet.coordinator.requests if isinstance(one, pb.StartMigrationRequest))
    assert wished.post_copy.when == post_copy_pb.PostCopy.WHEN_AFTER_FIRST_PASS
    assert wished.post_copy.bandwidth_bytes_per_second == 8 << 20
    assert wished.post_copy.preempt
    assert not plain.HasField("post_copy")


async def test_an_end_by_post_copy_allows_post_copy_with_what_is_wished_of_it(fleet):
    fleet.coordinator.story = [MOVED]

    await fleet.ferry(
        *("migrate", "web", "--to", "host-b", "--max-duration", "9s", "--on-timeout", "postcopy", "--postcopy-bandwidth", "8MiB/s")
    )

    post_copy = fleet.coordinator.requests[0].options.post_copy
    assert post_copy.when == post_copy_pb.PostCopy.WHEN_ALLOWED
    assert post_copy.bandwidth_bytes_per_second == 8 << 20


async def test_the_options_travel_as_they_were_typed(fleet):
    fleet.coordinator.story = [MOVED]

    await fleet.ferry(
        *("migrate", "web", "--to", "host-b", "--from", "host-a", "--multifd", "4", "--bandwidth", "1.5GB/s"),
        *("--max-downtime", "250ms", "--pause", "--name", "web2", "--migrate-uri", "tcp:host-b:49200", "--plain"),
    )

    request = fleet.coordinator.requests[0]
    options = request.options
    assert (request.vm, request.source_host, request.destination_host) == ("web", "host-a", "host-b")
    assert options.multifd_channel_count == 4
    assert options.bandwidth_bytes_per_second == 1_500_000_000
    assert options.max_downtime.ToMilliseconds() == 250
    assert (options.pause, options.plain, options.destination_name) == (True, True, "web2")
    assert options.migrate_uri == "tcp:host-b:49200"


@pytest.mark.parametrize(
    ("final", "code", "words"),
    [
        (
            migration(M.STATE_FAILED, error="port 49152 is taken", error_reason="PORT_TAKEN"),
            4,
            "the guest is on host-a",
        ),
        (CANCELLED, 4, "the guest is on host-a"),
        (migration(M.STATE_FAILED, M.GUEST_LOCATION_NOWHERE, error="QEMU died"), 5, "the guest runs nowhere"),
        (
            migration(M.STATE_FAILED, M.GUEST_LOCATION_NOWHERE, error="off", error_reason="GUEST_SHUT_DOWN"),
            5,
            "has ended by itself",
        ),
        (migration(M.STATE_FAILED, error="I/O error", error_reason="GUEST_IO_ERROR"), 4, "host-a and stands still"),
        (migration(M.STATE_FAILED, M.GUEST_LOCATION_UNSPECIFIED, error="?"), 6, "start it on neither"),
    ],
)
async def test_the_exit_code_and_the_words_tell_where_the_guest_is(fleet, final, code, words):
    fleet.coordinator.story = [final]

    typed = await fleet.ferry("migrate", "web", "--to", "host-b")

    assert typed.code == code
    assert words in typed.err
    assert final.error in typed.err


async def test_a_refused_start_changes_nothing_and_ends_with_1(fleet):
    fleet.coordinator.refusals["StartMigration"] = [NotFound("VM 'web' is on no host", reason="VM_UNKNOWN")]

    typed = await fleet.ferry("migrate", "web", "--to", "host-b")

    assert typed.code is ExitCode.REFUSED
    assert typed.err == "error: VM 'web' is on no host [VM_UNKNOWN]\n"
    assert typed.out == ""


async def test_a_start_that_the_coordinator_refuses_for_a_silent_host_is_not_called_undecided(fleet):
    fleet.coordinator.refusals["StartMigration"] = [Unreachable("host-b does not answer", reason="HOST_SILENT")]

    typed = await fleet.ferry("migrate", "web", "--to", "host-b")

    assert typed.code is ExitCode.REFUSED


async def test_no_coordinator_is_a_refusal_that_says_so(capsys):
    code = await run(["migrate", "web", "--to", "host-b", "--coordinator", "127.0.0.1:1", "--pki", "none"])

    told = capsys.readouterr().err
    assert code is ExitCode.REFUSED
    assert "coordinator at 127.0.0.1:1 cannot be reached" in told
    assert len(told.splitlines()) == 1


async def test_ctrl_c_without_a_terminal_cancels_and_reports_the_outcome(fleet):
    fleet.coordinator.story = [RUNNING]
    fleet.coordinator.after_cancel = [CANCELLED]

    async with asyncio.TaskGroup() as tasks:
        typing = tasks.create_task(fleet.ferry("migrate", "web", "--to", "host-b"))
        await fleet.coordinator.is_watched.wait()
        os.kill(os.getpid(), signal.SIGINT)

    assert fleet.coordinator.is_cancelled.is_set()
    assert typing.result().code is ExitCode.ROLLED_BACK
    assert "cancelled by a user" in typing.result().err


async def test_a_cancel_that_is_refused_is_told_and_the_move_goes_on(fleet):
    fleet.coordinator.story = [RUNNING, MOVED]
    fleet.coordinator.refusals["CancelMigration"] = [WrongState("the guest was sent", reason="TOO_LATE")]

    async with asyncio.TaskGroup() as tasks:
        typing = tasks.create_task(fleet.ferry("migrate", "web", "--to", "host-b"))
        await fleet.coordinator.is_watched.wait()
        os.kill(os.getpid(), signal.SIGINT)
        await fleet.coordinator.is_cancel_asked.wait()
        fleet.coordinator.is_flowing.set()

    assert typing.result().code is ExitCode.DONE


async def test_ctrl_c_while_watching_only_ends_the_watching(fleet):
    fleet.coordinator.story = [RUNNING, RUNNING]

    async with asyncio.TaskGroup() as tasks:
        typing = tasks.create_task(fleet.ferry("migration", "watch", ID[:6]))
        await fleet.coordinator.is_watched.wait()
        os.kill(os.getpid(), signal.SIGINT)

    assert typing.result().code is ExitCode.INTERRUPTED
    assert not fleet.coordinator.is_cancelled.is_set()
    assert "the migration goes on" in typing.result().err


async def test_the_command_is_the_root_of_the_trace_and_hands_its_span_over(fleet):
    fleet.coordinator.story = [MOVED]

    await fleet.ferry("migrate", "web", "--to", "host-b")

    (request,) = fleet.coordinator.exported
    (span,) = request.resource_spans[0].scope_spans[0].spans
    assert span.name == "ferry migrate"
    assert fleet.coordinator.traceparents[0].split("-")[1:3] == [span.trace_id.hex(), span.span_id.hex()]


async def test_the_span_goes_to_a_collector_too_when_the_environment_names_one(fleet, monkeypatch):
    fleet.coordinator.story = [MOVED]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{fleet.address}")

    await fleet.ferry("migrate", "web", "--to", "host-b")

    first, second = (request.resource_spans[0].scope_spans[0].spans[0] for request in fleet.coordinator.exported)
    assert first == second


async def test_a_collector_that_is_down_costs_nothing_but_the_span(fleet, monkeypatch):
    fleet.coordinator.story = [MOVED]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")

    typed = await fleet.ferry("migrate", "web", "--to", "host-b")

    assert typed.code is ExitCode.DONE
    assert len(typed.err.splitlines()) == 1


async def test_detach_prints_the_id_alone(fleet):
    fleet.coordinator.story = [RUNNING]

    typed = await fleet.ferry("migrate", "web", "--to", "host-b", "--detach")

    assert (typed.code, typed.out) == (ExitCode.DONE, f"{ID}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["migrate", "web"], "--to"),
        (
            ["migrate", "web", "--to", "b", "--bandwidth", "100"],
            "'100' is not a rate per second: did you mean 100MiB/s?",
        ),
        (["migrate", "web", "--to", "b", "--max-downtime", "0s"], "out of range: 1ms to 2000s"),
        (["migrate", "web", "--to", "b", "--tunnel", "--plain"], "--plain is for direct transfers"),
        (["migrate", "web", "--to", "b", "--multifd", "256"], "0 to 255"),
        (["migrate", "web", "--to", "b", "--multifd", "x"], "--multifd"),
        (["frob"], "frob"),
        (["migration", "set", "x"], "nothing to set"),
        (["vm", "start"], "VM"),
    ],
)
async def test_a_wrong_command_line_ends_with_2_and_says_what_is_wrong(fleet, arguments, words):
    typed = await fleet.ferry(*arguments)

    assert typed.code is ExitCode.USAGE
    assert words in typed.err
    assert "Traceback" not in typed.err
    assert fleet.coordinator.requests == []
