"""QEMUs that were started by hand, in odd ways, are adopted and moved there and back."""

from __future__ import annotations

import asyncio
import json
from uuid import uuid4

import pytest

from common.rpc.status import calls_to
from ferry.agent.v1 import adoption_pb2 as pb
from ferry.agent.v1 import migration_pb2
from tests.e2e.binaries import require
from tests.e2e.by_hand import MEMORY, ODD_NAME, by_hand
from tests.e2e.lab import Lab, refused
from tests.e2e.move import State
from tests.e2e.tables import cases, one_each

VERSIONS = ("7.2", "10.0")
QMP = ("-qmp", "unix:q.sock,server=on,wait=off")
SERIAL = ("-serial", "file:serial.log")
COMMON = ("-m", MEMORY, "-accel", "tcg", *QMP)
NODE = {"driver": "raw", "node-name": "disk=0", "file": {"driver": "file", "filename": "tick.img"}}
WAYS = {
    "all defaults": ("-M", "{q35}", *COMMON, *SERIAL, "-display", "none", "-drive", "file=tick.img,if=virtio"),
    "daemon of a pc": (
        "-M",
        "{pc}",
        *COMMON,
        *SERIAL,
        "-display",
        "none",
        "-daemonize",
        "-pidfile",
        "pid",
        "-hda",
        "{dir}/tick.img",
    ),
    "a bare image": ("-machine", "{pc},accel=tcg:kvm", *COMMON[:2], *QMP, *SERIAL, "-vnc", "unix:vnc.sock", "tick.img"),
    "nographic": (
        *("-M", "{q35},usb=off", *COMMON, *SERIAL, "-serial", "mon:stdio", "-nographic", "-no-user-config", "-smp", "2,maxcpus=4"),
        *("-drive", "if=none,id=d,format=raw,file=tick.img", "-device", "virtio-blk,drive=d", "-device", "virtio-scsi,id=s"),
        *("-device", "virtio-net,netdev=n", "-netdev", "user,id=n", "-device", "usb-ehci,id=e", "-device", "usb-tablet,bus=e.0"),
    ),
    "json": (
        *("-nodefaults", "-M", "{q35}", *COMMON, *SERIAL, "-display", "none", "-name", "guest=by hand,debug-threads=on"),
        *("-uuid", "11111111-0000-0000-0000-00000000ad01", "-blockdev", json.dumps({**NODE, "node-name": "disk0"})),
        *("-device", json.dumps({"driver": "virtio-blk-pci", "drive": "disk0", "serial": "a,b=c"})),
        *("-device", "virtio-balloon", "-chardev", "stdio,id=mon0,mux=on", "-mon", "chardev=mon0", "-cpu", "qemu64,+ssse3,-svm"),
        *("-monitor", "unix:second.sock,server,nowait", "-object", "iothread,id=io1", "-boot", "c", "-rtc", "base=utc"),
    ),
    "odd names": (
        *("-M", "{q35}", "-m", MEMORY, "-accel", "tcg", *SERIAL, "-display", "none", "-nodefaults", "-usb", "-usbdevice", "tablet"),
        *("-chardev", "socket,id=q,path=q.sock,server=on,wait=off", "-mon", "chardev=q,mode=control", "-device", "virtio-serial"),
        *(
            "-drive",
            f"if=virtio,format=raw,file={ODD_NAME.replace(',', ',,')}",
            "-chardev",
            "pty,id=p",
            "-device",
            "virtserialport,chardev=p",
        ),
    ),
    "scsi and blockdev words": (
        *("-M", "{pc}", *COMMON, *SERIAL, "-display", "none", "-sandbox", "on", "-device", "virtio-scsi-pci"),
        *("-blockdev", "driver=raw,node-name=disk0,file.driver=file,file.filename=tick.img", "-device", "scsi-hd,drive=disk0"),
        *("-net", "nic,model=e1000", "-net", "user", "-fw_cfg", "name=opt/x,string=/y", "-k", "de", "-device", "AC97"),
    ),
}


def command_line(way: str) -> list[str]:
    """Fill in machine types that both QEMUs have."""
    return [word.replace("{q35}", "pc-q35-7.2").replace("{pc}", "pc-i440fx-7.2") for word in WAYS[way]]


@cases(("way", "version"), (tuple(WAYS), (*VERSIONS, "11.1")), [*one_each(tuple(WAYS), VERSIONS), ("nographic", "11.1")])
async def test_a_qemu_started_by_hand_moves_there_and_back_whole(way: str, version: str, lab: Lab):
    here, there = ("host-a", "host-b") if version == "7.2" else ("host-b", "host-a")
    async with by_hand(lab, require(version), *command_line(way), argv0="/opt/wrapper") as hand:
        adopted = await hand.adopt(here)
        guest = await hand.guest(adopted.vm.uuid)

        for source, destination in ((here, there), (there, here)):
            move = await lab.start_move(guest.name, destination, source=source)
            outcome = await move.outcome()

            assert outcome.state == State.STATE_SUCCEEDED, outcome.error
            await guest.console.wait_sweeps(2)
            await lab.assert_only_on(destination, guest)

        assert not adopted.plan.blockers
        guest.assert_whole()


@pytest.mark.parametrize("version", ["7.2", "10.0"])
async def test_what_was_plugged_goes_along_and_what_was_unplugged_does_not(version: str, lab: Lab):
    here, there = ("host-a", "host-b") if version == "7.2" else ("host-b", "host-a")
    for name in ("more.img", "other.iso", "third.iso", "other2.iso"):
        (lab.directory / name).write_bytes(bytes(1 << 20))
    arguments = (
        *(
            "-M",
            "pc-q35-7.2",
            *COMMON,
            "-m",
            f"{MEMORY},slots=1,maxmem=1G",
            "-smp",
            "1,maxcpus=2",
            *SERIAL,
            "-display",
            "none",
            "-drive",
            "file=tick.img,if=virtio,format=raw",
        ),
        *(
            "-device",
            "pcie-root-port,id=rp1,chassis=1",
            "-device",
            "pcie-root-port,id=rp2,chassis=2",
            "-device",
            "virtio-scsi-pci,id=s",
        ),
        *("-drive", "if=none,id=gone,file=other.iso,format=raw,readonly=on", "-device", "scsi-hd,drive=gone,id=gone-disk,bus=s.0"),
        *("-cdrom", "third.iso", "-net", "none"),  # two user networks do not go from 10.0 to 7.2
    )
    async with by_hand(lab, require(version), *arguments) as hand:
        node: dict[str, object] = {"driver": "raw", "node-name": "more", "file": {"driver": "file", "filename": "more.img"}}
        await hand.ask(
            ("blockdev-add", node),
            ("device_add", {"driver": "virtio-blk-pci", "id": "more", "drive": "more", "bus": "rp2", "serial": "S,1"}),
            ("netdev_add", {"type": "user", "id": "n"}),
            ("device_add", {"driver": "virtio-net-pci", "id": "n", "netdev": "n", "bus": "rp1", "mac": "52:54:00:00:00:77"}),
            ("object-add", {"qom-type": "iothread", "id": "io9"}),
            ("object-add", {"qom-type": "memory-backend-ram", "id": "ram1", "size": 1 << 24}),
            ("device_add", {"driver": "pc-dimm", "id": "dimm1", "memdev": "ram1"}),
            ("device_add", {"driver": "qemu64-x86_64-cpu", "id": "cpu1", "socket-id": 0, "core-id": 1, "thread-id": 0}),
            ("device_del", {"id": "gone-disk"}),
            ("blockdev-change-medium", {"device": "ide2-cd0", "filename": "other2.iso", "read-only-mode": "read-only"}),
        )
        adopted = await hand.adopt(here)
        guest = await hand.guest(adopted.vm.uuid)
        await lab.kill(here.replace("host", "agent"))
        await lab.restart(here.replace("host", "agent"))
        await lab.wait_reachable()

        for source, destination in ((here, there), (there, here)):
            outcome = await (await lab.start_move(guest.name, destination, source=source)).outcome()

            assert outcome.state == State.STATE_SUCCEEDED, outcome.error
            await guest.console.wait_sweeps(2)
            await lab.assert_only_on(destination, guest)
        words = " ".join((await lab.vm(here, "web")).argv)
        assert '"id":"more","bus":"rp2","addr":"00.0"' in words
        assert "52:54:00:00:00:77" in words
        assert f"index=2,media=cdrom,file={lab.directory}/other2.iso" in words
        assert '"id":"cpu1","core-id":1' in words
        assert "gone" not in words
        guest.assert_whole()


async def test_a_released_qemu_is_its_owners_again(lab: Lab):
    async with by_hand(lab, require("7.2"), *command_line("all defaults")) as hand:
        adopted = await hand.adopt("host-a")
        guest = await hand.guest(adopted.vm.uuid)
        with refused("QMP_SOCKET_IN_USE", "another client", "q.sock"):
            await hand.adopt("host-b", name="again")
        with refused("VM_EXISTS", "is VM web"):
            await hand.adopt("host-a", name="again")

        with calls_to("the agent"):
            released = await lab.agents["host-a"].ReleaseVm(pb.ReleaseVmRequest(request_id=str(uuid4()), vm="web"))

        assert released.pid == adopted.vm.pid
        assert (await hand.ask(("query-status", {})))[0]["status"] == "running"  # type: ignore[index]
        await lab.wait_empty("host-a")
        again = await hand.adopt("host-b", name="again")
        assert await lab.vms("host-b") == {"again": "RUNNING"}
        await guest.console.wait_sweeps(1)
        assert again.vm.pid == adopted.vm.pid


async def test_a_dry_run_changes_nothing_and_tells_blockers(lab: Lab):
    arguments = ("-M", "q35", *COMMON, *SERIAL, "-daemonize", "-pidfile", "pid", "-hda", "tick.img", "-snapshot", "-icount", "3")
    async with by_hand(lab, require("7.2"), *arguments, "-display", "none") as hand:
        plan = (await hand.adopt("host-a", dry_run=True)).plan

        assert await lab.vms("host-a") == {}
        assert [blocker.split(":")[0] for blocker in plan.blockers] == ["-drive tick.img", "-snapshot", "-icount 3"]
        await hand.adopt("host-a")
        with refused("VM_CANNOT_MIGRATE", "-snapshot"):
            await lab.agents["host-a"].BeginMigration(migration_pb2.BeginMigrationRequest(migration_id="m-1", vm="web", epoch=1))


async def test_what_is_no_free_qmp_socket_is_refused_in_words(lab: Lab):
    arguments = ("-M", "none", "-display", "none", *QMP, "-monitor", "unix:hmp.sock,server,nowait")
    async with by_hand(lab, require("10.0"), *arguments) as hand:
        for name, reason, words in (
            ("nothing", "QMP_SOCKET_MISSING", "does not exist"),
            ("tick.img", "NOT_A_QMP_SOCKET", "is not a socket"),
            ("hmp.sock", "NOT_A_QMP_SOCKET", "human monitor"),
        ):
            with refused(reason, words):
                request = pb.AdoptVmRequest(request_id=str(uuid4()), qmp_path=str(hand.directory / name))
                await lab.agents["host-a"].AdoptVm(request)


async def test_the_command_says_what_it_would_do_and_does_it(lab: Lab):
    arguments = ("-M", "q35", *COMMON, *SERIAL, "-nographic", "-drive", "if=virtio,format=raw,file=tick.img")
    async with by_hand(lab, require("7.2"), *arguments) as hand:
        adopt = ("vm", "adopt", "--qmp", str(hand.socket), "--name", "web", "--host", "host-a")

        told = await asyncio.to_thread(lab.fleet.ferry, *adopt, "--dry-run")
        done = await asyncio.to_thread(lab.fleet.ferry, *adopt)
        shown = await asyncio.to_thread(lab.fleet.ferry, "vm", "ls")
        released = await asyncio.to_thread(lab.fleet.ferry, "vm", "release", "web")

        assert "-machine pc-q35-7.2" in told.stdout
        assert "written otherwise:" in told.stdout
        assert "web adopted on host-a" in done.stderr
        assert "web" in shown.stdout
        assert "is free" in released.stderr
