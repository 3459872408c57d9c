"""Transient VMs, pausing, resetting, starting with the host, and image locks, on a real QEMU."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from agent.store import Store
from agent.vm import controls
from agent.vm.autostart import start_marked
from agent.vm.events import VmEvents
from agent.vm.jobs import Job
from agent.vm.lifecycle import Vms
from agent.vm.settings import VmSettings
from agent.vm.vm import VmState
from common.errors import Busy, Expired, NotFound, WrongState
from tests.binaries import BINARIES
from tests.qemu.vms import agent, guest_xml, stop_all, wait_booted

UUID_1 = UUID("21111111-0000-0000-0000-000000000001")
UUID_2 = UUID("21111111-0000-0000-0000-000000000002")
SETTINGS = [
    pytest.param(VmSettings(qemu=str(path)), id=version, marks=pytest.mark.matrix if version == "11.1" else ())
    for version, path in BINARIES.items()
]


def told(events: VmEvents) -> list[tuple[str, str]]:
    return [(event.happening.value, event.reason.value) for event in events.after(0)]


async def wait_told(events: VmEvents, wanted: tuple[str, str]) -> None:
    async with asyncio.timeout(10):
        async for event in events.follow():
            if (event.happening.value, event.reason.value) == wanted:
                return


def deaf_guest(place: Path) -> None:
    (place / "guest.img").write_bytes(b"\0" * 512)  # does not boot, so the BIOS waits for ever


@pytest.mark.parametrize("settings", SETTINGS)
async def test_a_guest_is_paused_resumed_and_reset_and_each_is_told(place: Path, settings: VmSettings) -> None:
    async with agent(place / "s", settings) as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        await vms.start(vm)
        await wait_booted(place)

        await controls.pause(vms, vm)
        await controls.pause(vms, vm)
        paused = (await vms.view(vm)).state
        await controls.reset(vms, vm)
        await controls.resume(vms, vm)
        resumed = (await vms.view(vm)).state
        await wait_told(vms.events, ("RESUMED", "UNPAUSED"))
        await stop_all(vms)

        assert (paused, resumed) == (VmState.PAUSED, VmState.RUNNING)
        assert told(vms.events)[2:5] == [("SUSPENDED", "PAUSED"), ("RESET", "HOST"), ("RESUMED", "UNPAUSED")]


async def test_a_stopped_vm_can_be_neither_paused_nor_reset(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")

        for change in (controls.pause, controls.resume, controls.reset):
            with pytest.raises(WrongState, match="is not running"):
                await change(vms, vm)


async def test_a_guest_that_a_migration_holds_is_left_alone(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        await vms.start(vm, paused=True)

        with vms.lock(vm, Job.MIGRATION_OUT, "m-1"), pytest.raises(Busy, match="migration-out m-1"):
            await controls.resume(vms, vm)

        await stop_all(vms)


async def test_a_guest_paused_or_resumed_while_no_agent_watched_is_told_by_the_next_one(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        await vms.start(vm)
        qmp = vm.directory.qmp_path
    await _execute(qmp, "stop")
    async with agent(place / "s") as vms:
        await wait_told(vms.events, ("SUSPENDED", "PAUSED"))
    await _execute(qmp, "cont")
    async with agent(place / "s") as vms:
        await wait_told(vms.events, ("RESUMED", "UNPAUSED"))
        await stop_all(vms)


async def _execute(qmp: Path, command: str) -> None:
    reader, writer = await asyncio.open_unix_connection(str(qmp))
    for line in ('{"execute": "qmp_capabilities"}', f'{{"execute": "{command}"}}'):
        writer.write(line.encode())
        async with asyncio.timeout(5):
            while b'"return"' not in await reader.readline():
                pass
    writer.close()
    await writer.wait_closed()


async def test_a_transient_vm_is_gone_when_it_stops(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.create(guest_xml(place, UUID_1), "web.xml")
        was_persistent = (await vms.view(vm)).is_persistent

        await vms.stop(vm, force=True)

        assert not was_persistent
        assert vms.all() == []
        assert not vm.directory.path.exists()


async def test_a_transient_vm_that_does_not_start_leaves_nothing(place: Path) -> None:
    async with agent(place / "s") as vms:
        xml = guest_xml(place, UUID_1)
        (place / "guest.img").unlink()

        with pytest.raises(WrongState, match=r"guest\.img does not exist"):
            await vms.create(xml, "web.xml")

        assert vms.all() == []
        assert not (place / f"s/vms/{UUID_1}").exists()


async def test_a_running_vm_that_is_undefined_is_transient_and_defined_again_persistent(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        await vms.start(vm)
        await vms.undefine(vm)
        with pytest.raises(WrongState, match="is transient"):
            await vms.undefine(vm)
    async with agent(place / "s") as vms:
        vm = vms.get("web")
        kept = await vms.view(vm)
        await vms.define(guest_xml(place, UUID_1), "web.xml")
        again = await vms.view(vm)
        await vms.undefine(vm)
        await vms.stop(vm, force=True)

        assert (kept.is_persistent, again.is_persistent, again.differs) == (False, True, False)
        with pytest.raises(NotFound):
            vms.get("web")


async def test_a_definition_that_differs_from_what_runs_is_shown_as_such(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        await vms.start(vm)
        before = await vms.view(vm)

        await vms.define(guest_xml(place, UUID_1).replace(b"16392", b"20488"), "web.xml")
        after = await vms.view(vm)
        await stop_all(vms)

        assert (before.differs, after.differs, after.definition.memory_kib) == (False, True, 16392)
        assert not (await vms.view(vm)).differs


async def test_a_guest_that_does_not_power_off_in_time_is_killed_if_asked_for(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        deaf_guest(place)
        await vms.start(vm)
        with pytest.raises(Expired):
            await vms.stop(vm, timeout_s=0.1)

        await vms.stop(vm, timeout_s=0.1, kill=True)

        assert told(vms.events)[-1] == ("STOPPED", "DESTROYED")


async def test_marked_vms_start_once_a_boot_and_a_failing_one_hinders_no_other(place: Path) -> None:
    (place / "db").mkdir()
    notes = []
    async with agent(place / "s") as vms:
        store = Store(place / "s")
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        broken = await vms.define(guest_xml(place / "db", UUID_2, name="a-broken"), "db.xml")
        (place / "db/guest.img").unlink()
        for one in (vm, broken):
            controls.set_autostart(vms, one, autostart=True)
    async with agent(place / "s") as vms:
        await start_marked(vms, store, lambda vm, error: notes.append((vm.name, "" if error is None else error.reason)))
        started = (await vms.view(vms.get("web"))).state
        await vms.stop(vms.get("web"), force=True)
        await start_marked(vms, store, lambda *_: notes.append(("again", "")))
        again = (await vms.view(vms.get("web"))).state

        assert notes == [("a-broken", "FILE_MISSING"), ("web", "")]
        assert told(vms.events)[0] == ("AUTOSTART", "FAILED")
        assert (started, again) == (VmState.RUNNING, VmState.STOPPED)


async def test_a_transient_vm_cannot_start_with_its_host(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.create(guest_xml(place, UUID_1), "web.xml")

        with pytest.raises(WrongState, match="transient"):
            controls.set_autostart(vms, vm, autostart=True)

        await stop_all(vms)


@pytest.mark.parametrize("way", ["same path", "hard link", "symlink", "renamed since"])
@pytest.mark.parametrize("is_reader", [False, True], ids=["writer", "reader"])
async def test_an_image_that_a_running_vm_writes_is_refused_under_any_name(place: Path, way: str, *, is_reader: bool) -> None:
    async with agent(place / "s") as vms:
        first = await vms.define(guest_xml(place, UUID_1), "web.xml")
        xml = guest_xml(place, UUID_2, name="db")
        await vms.start(first)
        image, other = place / "guest.img", place / "other.img"
        match way:
            case "hard link":
                os.link(image, other)
            case "symlink":
                other.symlink_to(image)
            case "renamed since":
                image.rename(other)
        path = image if way == "same path" else other
        xml = xml.replace(str(image).encode(), str(path).encode())
        if is_reader:
            xml = xml.replace(b"<target dev='vda' bus='virtio'/>", b"<target dev='vda' bus='virtio'/><readonly/>")
        second = await vms.define(xml, "db.xml")

        with pytest.raises(WrongState, match=r"disk vda: .*is used by VM web") as caught:
            await vms.start(second)
        incoming = replace(second.definition, accelerator=first.definition.accelerator)
        await vms.undefine(second)
        with pytest.raises(WrongState, match="is used by VM web"):
            await vms.start_incoming(incoming, "m-1")
        await stop_all(vms)

        assert caught.value.reason == "IMAGE_IN_USE"
        assert [vm.name for vm in vms.all()] == ["web"]


async def test_two_vms_may_read_one_image(place: Path) -> None:
    def reading(uuid: UUID, name: str) -> bytes:
        return guest_xml(place, uuid, name=name).replace(
            b"<target dev='vda' bus='virtio'/>", b"<target dev='vda' bus='virtio'/><readonly/>"
        )

    async with agent(place / "s") as vms:
        for uuid, name in ((UUID_1, "web"), (UUID_2, "db")):
            await vms.start(await vms.define(reading(uuid, name), "x.xml"), paused=True)

        running = [vm.name for vm in vms.all() if vm.running]
        await stop_all(vms)

        assert running == ["db", "web"]


async def test_an_image_is_free_again_when_its_vm_has_stopped(place: Path) -> None:
    async with agent(place / "s") as vms:
        first = await vms.define(guest_xml(place, UUID_1), "web.xml")
        second = await vms.define(guest_xml(place, UUID_2, name="db"), "db.xml")
        await _run_shortly(vms, first.name)
        await _run_shortly(vms, second.name)


async def _run_shortly(vms: Vms, name: str) -> None:
    vm = vms.get(name)
    await vms.start(vm)
    await vms.stop(vm, force=True)
