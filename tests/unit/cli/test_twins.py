"""VMs that two hosts have are refused, or found."""

from __future__ import annotations

from typing import cast

import pytest

from common.errors import Unreachable, WrongState
from coordinator.cli import twins
from coordinator.cli.fleet_vms import HostVms
from coordinator.cli.link import Agent, Link
from coordinator.cli.screen import Screen
from ferry.agent.v1 import vm_pb2 as pb
from ferry.coordinator.v1 import coordinator_service_pb2 as coordinator_pb

UUID = "11111111-0000-0000-0000-000000000001"
RUNNING, STOPPED, PAUSED, UNKNOWN = (pb.Vm.STATE_RUNNING, pb.Vm.STATE_STOPPED, pb.Vm.STATE_PAUSED, pb.Vm.STATE_UNKNOWN)


class _Peer:
    def __init__(self, answer: pb.ListVmsResponse | None) -> None:
        self._answer = answer

    async def read(self, *_: object, **__: object) -> pb.ListVmsResponse:
        if self._answer is None:
            raise Unreachable("connection refused")
        return self._answer


class _Stub:
    ListVms = None


class _Fleet:
    """A coordinator that names hosts, and their agents; a host with None does not answer."""

    def __init__(self, **hosts: list[pb.Vm] | None) -> None:
        self._hosts = {name.replace("_", "-"): vms for name, vms in hosts.items()}

    async def hosts(self) -> tuple[coordinator_pb.Host, ...]:
        return tuple(coordinator_pb.Host(name=name, agent_address=f"{name}:1") for name in self._hosts)

    def agent_at(self, host: str, address: str) -> Agent:
        vms = self._hosts[host]
        peer = _Peer(None if vms is None else pb.ListVmsResponse(vms=vms))
        peer.stub = _Stub()  # type: ignore[attr-defined]
        return Agent(host, address, cast("object", peer))  # type: ignore[arg-type]


class _Silent(_Fleet):
    async def hosts(self) -> tuple[coordinator_pb.Host, ...]:
        raise Unreachable("coordinator at x cannot be reached")


def vm(state: pb.Vm.State.ValueType = STOPPED, **more: str) -> pb.Vm:
    return pb.Vm(name="web", uuid=UUID, state=state, **more)  # type: ignore[arg-type]


def answers(**hosts: pb.Vm) -> list[HostVms]:
    fleet = _Fleet(**{name: [one] for name, one in hosts.items()})
    return [HostVms(fleet.agent_at(name, ""), (one,), "") for name, one in hosts.items()]


async def define(fleet: _Fleet, uuid: str = UUID) -> None:
    await twins.refuse_second_definition(cast("Link", fleet), fleet.agent_at("host-a", "host-a:1"), uuid, Screen())


async def start(fleet: _Fleet) -> None:
    await twins.refuse_second_guest(cast("Link", fleet), fleet.agent_at("host-a", "host-a:1"), UUID, Screen())


@pytest.mark.parametrize("state", [RUNNING, STOPPED])
async def test_a_vm_of_another_host_is_not_defined_a_second_time(state):
    with pytest.raises(WrongState, match="is that of VM web on host-b") as caught:
        await define(_Fleet(host_a=[], host_b=[vm(state)]))

    assert caught.value.reason == "VM_EXISTS_ELSEWHERE"


async def test_a_vm_that_the_host_has_already_is_defined_anew_though_its_guest_is_elsewhere():
    await define(_Fleet(host_a=[vm(moved_to="host-b")], host_b=[vm(RUNNING)]))


async def test_a_new_vm_without_uuid_is_defined():
    await define(_Fleet(host_a=[], host_b=[vm()]), uuid="")


@pytest.mark.parametrize("state", [RUNNING, PAUSED, UNKNOWN, pb.Vm.STATE_INCOMING])
async def test_a_guest_that_runs_or_may_run_elsewhere_is_not_started(state):
    with pytest.raises(WrongState, match="runs on host-b: a second guest of it on host-a") as caught:
        await start(_Fleet(host_a=[vm()], host_b=[vm(state)]))

    assert caught.value.reason == "VM_RUNS_ELSEWHERE"


async def test_a_guest_that_is_stopped_elsewhere_is_started():
    await start(_Fleet(host_a=[vm()], host_b=[vm()]))


async def test_a_host_that_does_not_answer_is_named_and_hinders_nothing(capsys):
    await start(_Fleet(host_a=[vm()], host_b=None))

    assert "whether host-b has this VM is not known: connection refused" in capsys.readouterr().err


async def test_without_a_coordinator_a_lone_agent_is_used_and_that_is_told(capsys):
    await start(_Silent(host_a=[vm()]))

    assert "whether another host has this VM is not known: coordinator at x cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("xml", "found"),
    [
        (f"<domain><uuid> {UUID.upper()} </uuid></domain>", UUID),
        ("<domain><name>web</name></domain>", ""),
        ("<domain><uuid>x</uuid></domain>", ""),
        ("<domain><!-- <uuid>11111111-0000-0000-0000-000000000001</uuid> --></domain>", ""),
        ("<domain", ""),
    ],
)
def test_the_uuid_of_a_domain_is_read(xml: str, found: str):
    assert twins.uuid_of(xml.encode()) == found


def test_two_guests_of_one_uuid_are_found():
    [pair] = twins.pairs(answers(a=vm(RUNNING), b=vm(PAUSED), c=vm()))

    assert (pair.hosts, pair.is_running_twice) == (("a", "b"), True)
    assert "ferry vm destroy web --host" in pair.advice


def test_a_vm_that_is_defined_twice_is_found():
    [pair] = twins.pairs(answers(a=vm(RUNNING), b=vm()))

    assert (pair.hosts, pair.is_running_twice) == (("a", "b"), False)
    assert pair.advice.endswith("ferry vm undefine web --host b")


def test_a_guest_on_its_way_and_a_definition_that_stayed_are_no_pair():
    assert twins.pairs(answers(a=vm(RUNNING, migration_id="x"), b=vm(pb.Vm.STATE_INCOMING, migration_id="x"))) == ()
    assert twins.pairs(answers(a=vm(moved_to="b"), b=vm(RUNNING))) == ()
