"""The life of VMs on a real QEMU."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from agent.vm.definition import Accelerator
from agent.vm.events import Happening, VmEvents
from agent.vm.jobs import Job
from agent.vm.process import QemuNotStarted
from agent.vm.running import Running
from agent.vm.settings import VmSettings
from agent.vm.vm import VmState
from common.errors import Busy, Expired, InvalidRequest, NotFound, WrongState
from tests.qemu.vms import agent, guest_xml, stop_all, wait_booted

UUID_1 = UUID("11111111-0000-0000-0000-000000000001")
UUID_2 = UUID("11111111-0000-0000-0000-000000000002")


def told(events: VmEvents) -> list[tuple[str, str]]:
    """List what was told, without the numbers."""
    return [(event.happening.value, event.reason.value) for event in events.after(0)]


def is_in_proc(pid: int) -> bool:
    """Say whether the kernel still lists a process, if only as a zombie."""
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("machine", ["q35", "pc"])
async def test_a_defined_vm_boots_from_its_disk_and_powers_off_when_asked(place: Path, machine: str) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1, machine=machine), "web.xml")
        await vms.start(vm)
        await wait_booted(place)
        running = await vms.view(vm)

        await vms.stop(vm, timeout_s=10)

        assert running.state is VmState.RUNNING
        assert (await vms.view(vm)).state is VmState.STOPPED
        assert told(vms.events) == [("DEFINED", "ADDED"), ("STARTED", "BOOTED"), ("STOPPED", "SHUTDOWN")]


async def test_a_vm_started_paused_says_so_and_has_not_booted(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        await vms.start(vm, paused=True)

        assert (await vms.view(vm)).state is VmState.PAUSED
        with pytest.raises(WrongState, match="is paused"):
            await vms.stop(vm)
        await vms.stop(vm, force=True)
        assert (place / "serial.log").read_bytes() == b""
        assert told(vms.events)[-1] == ("STOPPED", "DESTROYED")


async def test_the_view_has_what_people_ask_for(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        await vms.start(vm)
        view = await vms.view(vm)
        await stop_all(vms)

        assert view.pid is not None
        assert view.definition.accelerator is Accelerator.TCG
        assert view.definition.machine.startswith("pc-q35-")
        assert view.argv[1:3] == ("-name", "guest=web,debug-threads=on")
        assert view.files["serial0"] == f"{place}/serial.log"
        assert (view.job, view.migration_id) == (None, "")


async def test_guest_memory_that_starts_below_its_most_is_ballooned(place: Path) -> None:
    xml = guest_xml(place, UUID_1).replace(b"<os>", b"<currentMemory>8192</currentMemory><os>")
    async with agent(place / "s") as vms:
        vm = await vms.define(xml, "web.xml")
        await vms.start(vm)
        await stop_all(vms)


async def test_a_guest_that_does_not_listen_is_reported_and_can_be_forced(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        (place / "guest.img").write_bytes(b"\0" * 512)  # does not boot, so the BIOS waits for ever
        await vms.start(vm)

        with pytest.raises(Expired, match=r"has not powered off in 0\.1 s"):
            await vms.stop(vm, timeout_s=0.1)
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(vms.stop(vm, timeout_s=30))
            await asyncio.sleep(0)  # so that it asks first
            asks_first = vms.lock_of(vm) is not None
            await vms.stop(vm, force=True)

        assert asks_first
        assert asking.done()
        assert told(vms.events)[-1] == ("STOPPED", "DESTROYED")


async def test_a_qemu_that_refuses_its_command_line_is_quoted_and_leaves_nothing(place: Path) -> None:
    xml = guest_xml(place, UUID_1).replace(b"<disk type='file'>", b"<disk type='file'><driver type='qcow2'/>")
    async with agent(place / "s") as vms:
        vm = await vms.define(xml, "web.xml")

        with pytest.raises(QemuNotStarted, match=r"VM web did not start: .*Image is not in qcow2 format$"):
            await vms.start(vm)

        assert vm.running is None
        assert (await vms.view(vm)).state is VmState.STOPPED
        assert not vm.directory.qmp_path.exists()
        assert vm.directory.find_running() is None
        assert told(vms.events)[1:] == [("STOPPED", "FAILED")]


async def test_a_disk_in_use_by_a_guest_of_another_agent_is_refused_in_qemus_words(place: Path) -> None:
    async with agent(place / "s") as vms, agent(place / "t") as others:
        first = await others.define(guest_xml(place, UUID_1), "web.xml")
        second = await vms.define(guest_xml(place, UUID_2, name="db"), "db.xml")
        await others.start(first)

        with pytest.raises(QemuNotStarted, match=r'VM db did not start: .*Failed to get "write" lock'):
            await vms.start(second)

        await stop_all(others)
        assert told(vms.events).count(("STOPPED", "FAILED")) == 1


async def test_a_start_that_nobody_waits_for_any_more_is_undone(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await vms.start(vm)

        assert vm.running is None
        assert vms.lock_of(vm) is None


async def test_bad_requests_change_nothing(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")

        with pytest.raises(NotFound, match="VM db does not exist"):
            vms.get("db")
        with pytest.raises(WrongState, match="is not running"):
            await vms.stop(vm)
        with pytest.raises(WrongState, match="is taken"):
            await vms.define(guest_xml(place, UUID_2), "web.xml")
        with pytest.raises(WrongState, match="is taken"):
            await vms.define(guest_xml(place, UUID_1, name="db"), "web.xml")
        with pytest.raises(InvalidRequest):
            await vms.define(b"<domain", "web.xml")

        assert [vm.name for vm in vms.all()] == ["web"]
        assert told(vms.events) == [("DEFINED", "ADDED")]


async def test_a_vm_is_found_by_name_and_by_uuid(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")

        assert vms.get("web") is vm
        assert vms.get(str(UUID_1).upper()) is vm


async def test_a_definition_may_be_replaced_and_removed(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        await vms.define(guest_xml(place, UUID_1).replace(b"16392", b"32776"), "web.xml")
        memory_kib = vm.definition.memory_kib

        await vms.undefine(vm)

        assert memory_kib == 32776
        assert vms.all() == []
        assert list((place / "s" / "vms").iterdir()) == []
        assert told(vms.events) == [("DEFINED", "ADDED"), ("DEFINED", "UPDATED"), ("UNDEFINED", "REMOVED")]


async def test_a_job_keeps_others_away_from_the_vm(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        await vms.start(vm)
        lock = vms.lock(vm, Job.MIGRATION_OUT, "m-1")

        for attempt in (vms.stop(vm), vms.stop(vm, force=True), vms.start(vm), vms.undefine(vm)):
            with pytest.raises(Busy, match="migration-out m-1"):
                await attempt
        with pytest.raises(Busy, match="migration-out m-1"):
            await vms.define(guest_xml(place, UUID_1), "web.xml")

        lock.release()
        await vms.stop(vm, force=True)


async def test_a_running_vm_cannot_be_started(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        await vms.start(vm)

        with pytest.raises(WrongState, match="is running"):
            await vms.start(vm)

        await stop_all(vms)


async def test_a_killed_qemu_is_a_crash_and_no_zombie(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        await vms.start(vm)
        keeper = vm.get_keeper()

        keeper.identity.send_signal(signal.SIGKILL)
        async with asyncio.timeout(5):
            await keeper.ended.wait()

        assert (await vms.view(vm)).state is VmState.CRASHED
        assert vms.events.after(0)[-1].detail == "killed by signal 9 (Killed)"
        assert not is_in_proc(keeper.identity.pid)
        await vms.start(vm)
        await stop_all(vms)


async def test_a_qemu_that_others_quit_is_not_a_crash(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        await vms.start(vm)
        keeper = vm.get_keeper()

        keeper.identity.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            await keeper.ended.wait()

        assert told(vms.events)[-1] == ("STOPPED", "DESTROYED")


async def test_pausing_and_resuming_is_told(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        await vms.start(vm)

        await vms.qemu(vm).stop()
        with vms.lock(vm, Job.MIGRATION_OUT, "m-1"):
            await vms.qemu(vm).cont()
        async with asyncio.timeout(5):
            async for event in vms.events.follow():
                if event.happening is Happening.RESUMED:
                    break

        assert told(vms.events)[2:] == [("SUSPENDED", "PAUSED"), ("RESUMED", "MIGRATED")]
        await stop_all(vms)


async def test_a_mute_qemu_is_unknown_within_a_second_and_can_be_forced(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        await vms.start(vm)
        vm.get_keeper().identity.send_signal(signal.SIGSTOP)

        async with asyncio.timeout(1.5):
            view = await vms.view(vm)

        assert view.state is VmState.UNKNOWN
        await vms.stop(vm, force=True)


async def test_the_next_agent_finds_the_vm_running(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        await vms.start(vm)
        pid = vm.get_keeper().identity.pid

    async with agent(place / "s") as vms:
        vm = vms.get("web")

        view = await vms.view(vm)

        assert (view.state, view.pid) == (VmState.RUNNING, pid)
        assert told(vms.events) == []
        await vms.stop(vm, force=True)


async def test_the_next_agent_notices_a_vm_that_died(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        await vms.start(vm)
        identity = vm.get_keeper().identity
    identity.send_signal(signal.SIGKILL)
    async with asyncio.timeout(5):
        await identity.wait_exit()

    async with agent(place / "s") as vms:
        vm = vms.get("web")

        assert (await vms.view(vm)).state is VmState.CRASHED
        assert told(vms.events) == [("STOPPED", "CRASHED")]
        assert not vm.directory.qmp_path.exists()


async def test_an_agent_that_died_before_it_wrote_the_pid_is_followed_by_one_that_finds_it(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        await vms.start(vm)
        running = vm.get_running()
        vm.directory.save_running(replace(running, process=None, argv=()).to_record())

    async with agent(place / "s") as vms:
        vm = vms.get("web")

        assert vm.get_running().process == running.process
        await stop_all(vms)


async def test_another_boot_of_the_host_means_that_nothing_runs(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        await vms.start(vm)
        record = vm.get_running()
        await stop_all(vms)
        vm.directory.save_running(replace(record, boot_id="another").to_record())

    async with agent(place / "s") as vms:
        assert vms.get("web").running is None
        assert vms.events.after(0)[-1].detail == "the host was started anew"


async def test_a_broken_record_is_left_alone_and_the_others_work(place: Path) -> None:
    async with agent(place / "s") as vms:
        broken = await vms.define(guest_xml(place, UUID_1), "web.xml")
        await vms.define(guest_xml(place, UUID_2, name="db"), "db.xml")
        path = broken.directory.path / "definition.json"
        path.write_text("{")

    async with agent(place / "s") as vms:
        assert [vm.name for vm in vms.all()] == ["db"]
        assert path.read_text() == "{"


async def test_a_qemu_outlives_an_agent_that_is_killed(place: Path) -> None:
    (place / "web.xml").write_bytes(guest_xml(place, UUID_1))
    program = (
        "import asyncio, pathlib, sys\n"
        "from tests.qemu.vms import agent\n"
        "async def main(place):\n"
        "    async with agent(place / 's') as vms:\n"
        "        await vms.start(await vms.define((place / 'web.xml').read_bytes(), 'web.xml'))\n"
        "        print('up', flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main(pathlib.Path(sys.argv[1])))\n"
    )
    with subprocess.Popen(  # noqa: ASYNC220 - the test has nothing else to do
        [sys.executable, "-c", program, str(place)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as killed:
        assert killed.stdout is not None
        assert "up\n" in iter(killed.stdout.readline, "")
        killed.kill()

    async with agent(place / "s") as vms:
        vm = vms.get("web")

        assert (await vms.view(vm)).state is VmState.RUNNING
        await stop_all(vms)
        assert not vm.directory.qmp_path.exists()


async def test_settings_confine_definitions(place: Path) -> None:
    settings = VmSettings(roots=(place / "images",))
    async with agent(place / "s", settings) as vms:
        with pytest.raises(InvalidRequest, match="outside of the configured directories"):
            await vms.define(guest_xml(place, UUID_1), "web.xml")

        assert vms.all() == []


async def test_the_record_of_a_running_vm_comes_back_equal(place: Path) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        await vms.start(vm)
        running = vm.get_running()
        await stop_all(vms)

    assert Running.from_record(json.loads(json.dumps(running.to_record()))) == running
