"""Hosts, VMs, past migrations, certificates."""

from __future__ import annotations

import json

import pytest
import yaml

from common.errors import InvalidRequest, Unreachable
from common.identity import Identity
from coordinator.cli.app import run
from coordinator.cli.exits import ExitCode
from ferry.agent.v1 import vm_pb2
from ferry.coordinator.v1 import coordinator_service_pb2 as pb
from tests.unit.cli.fake_fleet import ID, FakeAgent, migration, serve_fakes

WEB = vm_pb2.Vm(name="web", uuid="u-1", state=vm_pb2.Vm.STATE_RUNNING, pid=7, argv=["qemu", "-m", "64", "-S"])


async def test_hosts_are_listed_and_an_unreachable_one_says_why(fleet):
    fleet.coordinator.hosts[1].is_reachable = False
    fleet.coordinator.hosts[1].error = "connection refused"

    typed = await fleet.ferry("host", "ls")

    assert typed.code is ExitCode.DONE
    assert [line.split()[:2] for line in typed.out.splitlines()[1:]] == [["host-a", "up"], ["host-b", "unreachable"]]
    assert typed.err == "warning: host-b: connection refused\n"


async def test_json_and_yaml_say_the_same(fleet):
    as_json = await fleet.ferry("host", "ls", "-o", "json")
    as_yaml = await fleet.ferry("host", "ls", "-o", "yaml")

    assert json.loads(as_json.out) == yaml.safe_load(as_yaml.out)
    assert json.loads(as_json.out)[0]["qemu_version"] == "10.0.2"


async def test_options_may_stand_before_the_command(fleet, capsys):
    code = await run(["--coordinator", fleet.address, "--pki=none", "host", "ls"])

    assert code is ExitCode.DONE
    assert "host-a" in capsys.readouterr().out


async def test_a_definition_goes_to_the_named_host(fleet, tmp_path):
    path = tmp_path / "web.xml"
    path.write_text("<domain/>")

    typed = await fleet.ferry("vm", "define", str(path), "--host", "host-b")

    assert typed.code is ExitCode.DONE
    assert fleet.agent.requests[0].domain_xml == b"<domain/>"
    assert typed.err == "web defined on host-b\n"


async def test_an_element_that_is_not_carried_ends_with_3(fleet, tmp_path):
    path = tmp_path / "web.xml"
    path.write_text("<domain/>")
    fleet.agent.refusal = InvalidRequest("web.xml:7: /domain/x is not carried", path="/domain/x", line=7)

    typed = await fleet.ferry("vm", "define", str(path), "--host", "host-b")

    assert typed.code is ExitCode.NOT_CARRIED
    assert "web.xml:7: /domain/x is not carried" in typed.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["vm", "define", "/nowhere.xml", "--host", "host-a"], "/nowhere.xml: No such file or directory"),
        (["vm", "define", "/", "--host", "host-a"], "/: Is a directory"),
        (["vm", "define", "/dev/zero", "--host", "host-a"], "at most 1 MiB"),
        (["vm", "define", "/dev/null"], "known hosts: host-a, host-b"),
        (["vm", "start", "web", "--host", "host-c"], "host 'host-c' is not in the fleet; known hosts: host-a, host-b"),
        (["vm", "start", "other"], "VM 'other' is on no host that answers"),
        (["vm", "start", "web"], "VM 'web' is on several hosts: host-a, host-b"),
        (["vm", "ls", "--pki", "/nowhere"], ""),
    ],
)
async def test_bad_input_is_refused_in_one_line_and_nothing_is_changed(fleet, arguments, words):
    fleet.agent.vms = [WEB]

    typed = await fleet.ferry(*arguments)

    assert typed.code in (ExitCode.REFUSED, ExitCode.USAGE)
    assert words in typed.err
    assert fleet.agent.requests == []


async def test_a_vm_is_found_on_its_host_without_being_told(fleet):
    fleet.agent.vms = [WEB]
    del fleet.coordinator.hosts[1]

    typed = await fleet.ferry("vm", "stop", "u-1", "--timeout", "5s")

    assert typed.code is ExitCode.DONE
    assert fleet.agent.requests[0].timeout.seconds == 5


async def test_a_vm_that_is_on_its_way_is_found_where_it_runs(fleet):
    incoming = FakeAgent()  # type: ignore[abstract]
    incoming.vms = [vm_pb2.Vm(name="web", uuid="u-1", state=vm_pb2.Vm.STATE_INCOMING)]
    fleet.agent.vms = [WEB]
    async with serve_fakes(fleet.coordinator, incoming) as address:
        fleet.coordinator.hosts[1].agent_address = address

        typed = await fleet.ferry("vm", "stop", "web", "--force")

    assert typed.err == "web stopped on host-a\n"
    assert incoming.requests == []


async def test_a_start_whose_outcome_the_agent_does_not_know_ends_with_6(fleet):
    fleet.agent.refusal = Unreachable("query-status: no answer in 5.0 s", reason="QEMU_SILENT")

    typed = await fleet.ferry("vm", "start", "web", "--host", "host-a")

    assert typed.code is ExitCode.UNKNOWN
    assert "it may have been done" in typed.err


async def test_an_agent_is_reached_by_its_address_without_the_coordinator(fleet, capsys):
    fleet.agent.vms = [WEB]

    code = await run(["vm", "show", "web", "--host", fleet.address, "--coordinator", "127.0.0.1:1", "--pki", "none"])

    shown = capsys.readouterr().out
    assert code is ExitCode.DONE
    assert "running" in shown
    assert "  -m 64\n  -S\n" in shown


async def test_a_host_that_does_not_answer_is_told_and_the_others_are_listed(fleet):
    fleet.agent.vms = [WEB]
    fleet.coordinator.hosts[1].agent_address = "127.0.0.1:1"

    typed = await fleet.ferry("vm", "ls")

    assert typed.code is ExitCode.REFUSED
    assert [line.split()[:3] for line in typed.out.splitlines()[1:]] == [["web", "host-a", "running"]]
    assert "warning: host-b: agent of host-b at 127.0.0.1:1 cannot be reached" in typed.err


async def test_escape_sequences_of_others_never_reach_the_terminal(fleet):
    fleet.coordinator.hosts[1].error = "\x1b[2Jgone"
    fleet.coordinator.hosts[1].is_reachable = False

    typed = await fleet.ferry("host", "ls")

    assert "\x1b" not in typed.err


async def test_migrations_are_listed_by_short_id_with_the_place_of_the_guest(fleet):
    fleet.coordinator.story = [migration(pb.Migration.STATE_SUCCEEDED, pb.Migration.GUEST_LOCATION_DESTINATION)]

    typed = await fleet.ferry("migration", "ls", "web", "--limit", "7")

    assert typed.out.splitlines()[1].split()[:6] == [ID[:8], "web", "host-a", "host-b", "succeeded", "host-b"]
    assert fleet.coordinator.requests[0] == pb.ListMigrationsRequest(vm="web", page_size=7)


async def test_setting_one_limit_leaves_the_other(fleet):
    fleet.coordinator.story = [migration(pb.Migration.STATE_TRANSFERRING)]

    typed = await fleet.ferry("migration", "set", ID, "--bandwidth", "0")

    assert typed.code is ExitCode.DONE
    request = fleet.coordinator.requests[0]
    assert request.HasField("bandwidth_bytes_per_second")
    assert not request.HasField("max_downtime")


async def test_a_cancelled_migration_is_what_cancel_was_asked_for(fleet):
    fleet.coordinator.story = [migration(pb.Migration.STATE_TRANSFERRING)]
    fleet.coordinator.after_cancel = [migration(pb.Migration.STATE_CANCELLED)]

    typed = await fleet.ferry("migration", "cancel", ID[:8])

    assert typed.code is ExitCode.DONE
    assert "error" not in typed.err


async def test_a_cancel_that_came_too_late_says_so(fleet):
    fleet.coordinator.story = [migration(pb.Migration.STATE_SWITCHING)]
    fleet.coordinator.after_cancel = [migration(pb.Migration.STATE_SUCCEEDED, pb.Migration.GUEST_LOCATION_DESTINATION)]

    typed = await fleet.ferry("migration", "cancel", ID[:8])

    assert typed.code is ExitCode.REFUSED
    assert "the cancel came too late" in typed.err


async def test_fencing_needs_a_yes_and_never_shows_the_token(fleet):
    fleet.coordinator.story = [migration(pb.Migration.STATE_WAITING)]

    asked = await fleet.ferry("migration", "fence", ID[:8], "--host", "host-a")
    done = await fleet.ferry("migration", "fence", ID[:8], "--host", "host-a", "--yes", "-o", "json")

    assert asked.code is ExitCode.USAGE
    assert done.code is ExitCode.DONE
    (request,) = fleet.agent.requests
    assert (request.migration_id, request.peer_is_dead) == (ID, True)
    assert "resume_token" not in json.loads(done.out)


async def test_certificates_are_made_and_not_made_twice(tmp_path, capsys):
    authority = tmp_path / "ca"

    first = await run(["pki", "init", str(authority)])
    again = await run(["pki", "init", str(authority)])
    issued = await run(
        [
            "pki",
            "issue",
            "host-a",
            "--role",
            "agent",
            "--address",
            "127.0.0.1",
            "-a",
            "a.example",
            "--ca",
            str(authority),
        ]
    )

    assert (first, again, issued) == (ExitCode.DONE, ExitCode.REFUSED, ExitCode.DONE)
    assert all(Identity.in_directory(tmp_path / "host-a").read())
    assert "holds an authority already" in capsys.readouterr().err


async def test_a_side_is_released_at_its_agent_and_never_shows_the_token(fleet):
    fleet.coordinator.story = [migration(pb.Migration.STATE_WAITING)]

    done = await fleet.ferry("migration", "release", ID[:8], "--host", "host-a", "--force", "-o", "json")

    assert done.code is ExitCode.DONE
    assert "web: host-a has let go of it (Retired)" in done.err
    (request,) = fleet.agent.requests
    assert (request.migration_id, request.force) == (ID, True)
    assert "resume_token" not in json.loads(done.out)


async def test_a_release_without_a_host_is_the_coordinators_and_takes_no_force(fleet):
    fleet.coordinator.story = [migration(pb.Migration.STATE_FAILED, error="given up by an operator")]

    done = await fleet.ferry("migration", "release", ID[:8])
    forced = await fleet.ferry("migration", "release", ID[:8], "--force")

    assert done.code is ExitCode.DONE
    assert forced.code is ExitCode.USAGE
    assert not fleet.agent.requests
