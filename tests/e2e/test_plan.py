"""`ferry plan` and `migrate --dry-run`: everything in the way in one go, what it is going to be, and nothing changed."""

from __future__ import annotations

import asyncio
import json
from uuid import uuid4

from ferry.agent.v1 import plan_service_pb2 as pb
from ferry.agent.v1 import plan_service_pb2_grpc as rpc
from tests.e2e.guest import Plan, domain
from tests.e2e.lab import Lab
from tests.e2e.move import wishes
from tests.e2e.tables import cases
from tests.e2e.waiting import until

WAYS = {"psk": (), "plain": ("--plain",), "tunnel": ("--tunnel",), "multifd": ("--multifd", "2", "--compression", "zstd")}


async def ferry(lab: Lab, *arguments: str) -> tuple[int, str, str]:
    done = await asyncio.to_thread(lab.fleet.ferry, *arguments)
    return done.returncode, done.stdout, done.stderr


@cases(("way",), (tuple(WAYS),), [("psk",), ("tunnel",), ("multifd",)])
async def test_a_plan_says_what_the_move_then_is(way: str, lab: Lab):
    guest = await lab.start_guest(plan=Plan(megabytes=16))

    code, said, told = await ferry(lab, "plan", "web", "--to", "host-b", *WAYS[way], "-o", "json")
    plan = json.loads(said)

    assert code == 0, told
    assert "nothing stands in the way" in told
    assert [one for one in plan["findings"] if one["severity"] == "BLOCKER"] == []
    assert plan["forecast"]["ends"]
    assert 12 << 20 < plan["forecast"]["used_bytes"] < plan["forecast"]["memory_bytes"]
    await lab.assert_only_on("host-a", guest)
    assert await lab.vms("host-b") == {}

    code, said, told = await ferry(lab, "migrate", "web", "--to", "host-b", *WAYS[way])

    assert code == 0, told
    assert "PREDICTED" in said
    assert await lab.vms("host-a") == {}
    await guest.console.wait_sweeps(1)
    guest.assert_whole()


@cases(("way",), (("plain", "multifd"),), [("multifd",)])
async def test_a_plan_from_the_newer_qemu_to_the_older_one_too(way: str, lab: Lab):
    """QEMU writes multifd's stream by the machine type, so that of the measurement has to be the guest's."""
    guest = await lab.start_guest("host-b", plan=Plan(megabytes=16))

    code, _, told = await ferry(lab, "plan", "web", "--to", "host-a", *WAYS[way])

    assert code == 0, told
    await lab.assert_only_on("host-b", guest)


async def test_one_plan_tells_everything_that_stands_in_the_way(lab: Lab):
    guest = await lab.start_guest()
    await lab.define("host-b", domain(Plan(name="web"), lab.directory, uuid=uuid4()))
    elsewhere = lab.directory / "elsewhere"
    elsewhere.mkdir()
    changed = (lab.directory / "web.xml").with_name("changed.xml")
    changed.write_bytes(domain(Plan(), elsewhere, uuid=guest.uuid))
    for image in elsewhere.glob("*.img"):
        image.unlink()

    options = (
        "--zero-copy",
        "--multifd",
        "2",
        "--plain",
        "--migrate-uri",
        "tcp:nowhere.invalid",
        "--xml",
        str(changed),
        "--disks",
        "none",
    )
    code, said, told = await ferry(lab, "migrate", "web", "--from", "host-a", "--to", "host-b", "--dry-run", *options, "-o", "json")
    found = {one["code"] for one in json.loads(said)["findings"] if one["severity"] == "BLOCKER"}

    assert code == 1, told
    assert "things stand in the way" in told
    assert {"VM_EXISTS", "FILE_MISSING", "DISK_NOT_SHARED", "HOST_UNKNOWN"} <= found, found
    await lab.assert_only_on("host-a", guest, others=("web",))
    assert not [path for path in lab.leftovers() if ".ferry-" in path]


async def test_what_cannot_be_planned_is_told(lab: Lab):
    await lab.define("host-a", domain(Plan(), lab.directory))

    code, said, _ = await ferry(lab, "plan", "web", "--to", "host-b", "-o", "json")
    assert code == 1
    assert [one["code"] for one in json.loads(said)["findings"]] == ["VM_NOT_RUNNING"]

    code, _, told = await ferry(lab, "plan", "nothing", "--to", "host-b")
    assert code == 1
    assert "nothing" in told

    code, _, told = await ferry(lab, "plan", "web", "--to", "host-c")
    assert code == 1
    assert "host-c" in told


async def test_a_guest_that_never_converges_is_told_beforehand(lab: Lab):
    await lab.start_guest(plan=Plan(megabytes=32, dirty_mib_s=64))

    code, said, _ = await ferry(lab, "plan", "web", "--to", "host-b", "--plain", "--bandwidth", "8MiB/s", "-o", "json")

    assert code == 0
    assert not json.loads(said)["forecast"]["ends"]
    assert "would not converge" in json.loads(said)["forecast"]["strategy"]


async def test_an_agent_killed_in_a_plan_removes_its_marker_when_it_is_back(lab: Lab):
    await lab.start_guest()
    asked = pb.PlanDepartureRequest(look=pb.PlanDepartureRequest.Look(plan_id=str(uuid4()), vm="web", options=wishes()))
    plan = rpc.PlanServiceStub(lab.channel("host-a")).PlanDeparture()
    await plan.write(asked)
    await plan.read()
    assert list(lab.directory.glob(".ferry-*"))

    await lab.kill("agent-a")
    await lab.restart("agent-a")

    await until(lambda: not list(lab.directory.glob(".ferry-*")), "no marker")
    plan.cancel()
