"""Saving, restoring and dumping guests on real QEMUs, as the agent does it; the guest checks its own memory."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest

from agent.saving.job import Kind, State, VmJob
from agent.saving.part import part_path
from agent.saving.record import JobRecord, JobRecords
from agent.saving.vm_jobs import VmJobs
from agent.store import Store
from agent.vm import controls
from agent.vm.lifecycle import Vms
from agent.vm.probes import HostProbes
from agent.vm.settings import VmSettings
from agent.vm.vm import VmState
from common.errors import InvalidRequest, WrongState
from common.tasks import OwnedTasks
from tests.binaries import BINARIES, MOSTLY_OLDER
from tests.e2e.guest import Plan, domain
from tests.e2e.waiting import until
from tests.guests.console import Console
from tests.qemu.vms import stop_all

UUID_1 = UUID("31111111-0000-0000-0000-000000000001")
TIMEOUT_S = 30.0
MIB = 1 << 20
ALL = VmSettings(emulators=tuple(str(path) for path in BINARIES.values()))
versions = pytest.mark.parametrize("version", MOSTLY_OLDER)


class Agent:
    """What an agent has of VMs and their jobs."""

    def __init__(self, vms: Vms, jobs: VmJobs) -> None:
        self.vms = vms
        self.jobs = jobs

    async def over(self, job: VmJob) -> VmJob:
        async with asyncio.timeout(TIMEOUT_S):
            return await self.jobs.get(job.id).wait_over()

    async def done(self, job: VmJob) -> VmJob:
        ended = await self.over(job)
        assert ended.state is State.COMPLETED, ended.error
        return ended

    async def state(self) -> VmState:
        return (await self.vms.view(self.vms.get("web"))).state


@asynccontextmanager
async def agent(state_dir: Path, version: str = "7.2") -> AsyncIterator[Agent]:
    """Run it; leaving it leaves the QEMUs and cuts jobs short, as the end of an agent does."""
    store = Store(state_dir)
    settings = VmSettings(qemu=str(BINARIES[version]), emulators=ALL.emulators)
    async with Vms(store, settings, HostProbes(store.cache_dir)) as vms, OwnedTasks() as tasks:
        jobs = VmJobs(vms, store, tasks)
        jobs.resume()
        yield Agent(vms, jobs)


@asynccontextmanager
async def guest(place: Path, one: Agent, *, dirty_mib_s: float = 2.0, megabytes: int = 4) -> AsyncIterator[Console]:
    """Define and start a guest that checks its memory; at the end every QEMU is ended."""
    plan = Plan(dirty_mib_s=dirty_mib_s, megabytes=megabytes)
    vm = await one.vms.define(domain(plan, place, uuid=UUID_1), "web.xml")
    await one.vms.start(vm)
    with Console(place / "serial.log") as console:
        await console.wait_ticks(3, timeout_s=TIMEOUT_S)
        try:
            yield console
        finally:
            await stop_all(one.vms)


def parts(directory: Path) -> list[Path]:
    return [*directory.glob(".*.part"), *directory.glob("s/vms/*/.*.part")]


@pytest.mark.parametrize(
    ("version", "is_mapped_ram"), [("7.2", False), ("10.0", False), ("10.0", True), ("11.1", False), ("11.1", True)]
)
async def test_a_saved_guest_is_restored_whole(place: Path, version: str, *, is_mapped_ram: bool) -> None:
    async with agent(place / "s", version) as one, guest(place, one) as console:
        vm = one.vms.get("web")

        saved = await one.done(await one.jobs.save(vm, str(place / "web.save"), is_mapped_ram=is_mapped_ram))
        stopped = await one.state()
        await one.done(await one.jobs.restore(str(place / "web.save")))
        await console.wait_sweeps(2, timeout_s=TIMEOUT_S)

        assert (saved.step, stopped, await one.state()) == ("checking", VmState.STOPPED, VmState.RUNNING)
        assert not (await one.vms.view(vm)).differs
        assert (place / "web.save").stat().st_mode & 0o777 == 0o600
        assert parts(place) == []
        console.assert_continuous()


@pytest.mark.parametrize(("there", "back"), [("7.2", "10.0"), ("10.0", "7.2"), ("7.2", "11.1"), ("11.1", "10.0"), ("11.1", "7.2")])
async def test_a_guest_that_one_version_saved_is_restored_by_the_other(place: Path, there: str, back: str) -> None:
    async with agent(place / "s", there) as one, guest(place, one):
        await one.done(await one.jobs.save(one.vms.get("web"), str(place / "web.save")))
    async with agent(place / "t", back) as other:
        with Console(place / "serial.log") as console:
            try:
                await other.done(await other.jobs.restore(str(place / "web.save")))
                await console.wait_sweeps(2, timeout_s=TIMEOUT_S)
            finally:
                await stop_all(other.vms)
        console.assert_continuous()


@versions
async def test_a_managed_save_is_brought_back_by_start_and_removed(place: Path, version: str) -> None:
    async with agent(place / "s", version) as one, guest(place, one) as console:
        vm = one.vms.get("web")

        await one.done(await one.jobs.save(vm, ""))
        kept = (await one.vms.view(vm)).has_saved_guest
        with pytest.raises(WrongState, match="has a saved guest"):
            await one.vms.undefine(vm)
        await one.vms.start(vm)
        await console.wait_sweeps(2, timeout_s=TIMEOUT_S)

        assert (kept, (await one.vms.view(vm)).has_saved_guest) == (True, False)
        console.assert_continuous()


async def test_a_managed_save_is_brought_back_by_a_newer_qemu_that_knows_fewer_words(place: Path) -> None:
    """A host got a new QEMU while the guest was saved; `reconnect` of its line is called otherwise there."""
    reconnects = '<reconnect enabled="yes" timeout="1"/>'
    inside = f'<serial type="unix"><source mode="connect" path="{place}/line">{reconnects}</source></serial>'
    line = await asyncio.start_unix_server(lambda *_: None, f"{place}/line")
    async with line:
        async with agent(place / "s", "7.2") as one:
            vm = await one.vms.define(domain(Plan(inside=inside), place, uuid=UUID_1), "web.xml")
            await one.vms.start(vm)
            with Console(place / "serial.log") as console:
                await console.wait_ticks(3, timeout_s=TIMEOUT_S)
                await one.done(await one.jobs.save(vm, ""))
        async with agent(place / "s", "11.1") as one:
            vm = one.vms.get("web")
            try:
                with Console(place / "serial.log") as console:
                    await one.vms.start(vm)
                    await console.wait_sweeps(2, timeout_s=TIMEOUT_S)
                    console.assert_continuous()
                argv = vm.get_running().argv
            finally:
                await stop_all(one.vms)

    assert any("reconnect-ms=1000" in word for word in argv)
    assert not any("reconnect=" in word for word in argv)


@versions
async def test_a_paused_guest_stays_paused_when_it_is_restored(place: Path, version: str) -> None:
    async with agent(place / "s", version) as one, guest(place, one) as console:
        vm = one.vms.get("web")
        await one.vms.qemu(vm).stop()

        await one.done(await one.jobs.save(vm, str(place / "web.save")))
        await one.done(await one.jobs.restore(str(place / "web.save")))
        restored = await one.state()
        await one.vms.qemu(vm).cont()
        await console.wait_sweeps(2, timeout_s=TIMEOUT_S)

        assert restored is VmState.PAUSED
        console.assert_continuous()


@versions
async def test_a_guest_that_has_never_run_is_saved_and_restored(place: Path, version: str) -> None:
    async with agent(place / "s", version) as one:
        vm = await one.vms.define(domain(Plan(), place, uuid=UUID_1), "web.xml")
        await one.vms.start(vm, paused=True)
        with Console(place / "serial.log") as console:
            try:
                await one.done(await one.jobs.save(vm, ""))
                await one.vms.start(vm)
                restored = await one.state()
                await controls.resume(one.vms, vm)
                await console.wait_ticks(3, timeout_s=TIMEOUT_S)
            finally:
                await stop_all(one.vms)

        assert restored is VmState.PAUSED


@versions
async def test_a_paused_guest_whose_save_fails_at_the_end_is_paused_and_can_be_resumed(place: Path, version: str) -> None:
    async with agent(place / "s", version) as one, guest(place, one, megabytes=16) as console:
        vm = one.vms.get("web")
        await controls.pause(one.vms, vm)
        job = await one.jobs.save(vm, str(place / "web.save"), bandwidth_bytes_per_second=16 * MIB)
        (place / "web.save").write_text("somebody else's")

        ended = await one.over(job)
        state = await one.state()
        await controls.resume(one.vms, vm)
        await console.wait_sweeps(2, timeout_s=TIMEOUT_S)

        assert (ended.reason, state) == ("FILE_EXISTS", VmState.PAUSED)
        assert "the guest is paused as it was" in ended.error
        assert (place / "web.save").read_text() == "somebody else's"
        assert parts(place) == []
        console.assert_continuous()


@versions
async def test_a_cancelled_save_leaves_no_file_and_the_guest_runs_on(place: Path, version: str) -> None:
    async with agent(place / "s", version) as one, guest(place, one, megabytes=16) as console:
        job = await one.jobs.save(one.vms.get("web"), str(place / "web.save"), bandwidth_bytes_per_second=MIB)
        work = one.jobs.get(job.id)
        await until(lambda: work.job.total_bytes, "a save under way")
        await one.jobs.set_bandwidth(work, 2 * MIB)

        one.jobs.cancel(work)
        ended = await one.over(job)
        await console.wait_sweeps(2, timeout_s=TIMEOUT_S)

        assert (ended.state, ended.bandwidth_bytes_per_second) == (State.CANCELLED, 2 * MIB)
        assert "the guest runs on" in ended.error
        assert not (place / "web.save").exists()
        assert parts(place) == []
        await one.done(await one.jobs.save(one.vms.get("web"), str(place / "web.save")))
        console.assert_continuous()


@versions
@pytest.mark.parametrize(("number", "words"), [(signal.SIGKILL, "ended unexpectedly"), (signal.SIGTERM, "ended by a signal")])
async def test_a_guest_that_dies_while_it_is_saved_is_told_as_that(place: Path, version: str, number: int, words: str) -> None:
    async with agent(place / "s", version) as one, guest(place, one, megabytes=16):
        job = await one.jobs.save(one.vms.get("web"), str(place / "web.save"), bandwidth_bytes_per_second=MIB)
        await asyncio.sleep(0.3)

        one.vms.get("web").get_keeper().identity.send_signal(number)  # type: ignore[arg-type]
        ended = await one.over(job)

        assert (ended.state, ended.reason) == (State.FAILED, "QEMU_ENDED")
        assert words in ended.error
        assert parts(place) == []
        assert "and then" not in ended.error
        assert await one.state() is (VmState.CRASHED if number == signal.SIGKILL else VmState.STOPPED)


@versions
async def test_an_agent_that_ends_in_a_save_is_followed_by_one_that_lets_the_guest_run(place: Path, version: str) -> None:
    async with agent(place / "s", version) as one, guest_left_alone(place, one):
        await one.jobs.save(one.vms.get("web"), str(place / "web.save"), bandwidth_bytes_per_second=MIB)
        await asyncio.sleep(0.3)
    with Console(place / "serial.log") as console:
        async with agent(place / "s", version) as next_one:
            try:
                ended = await next_one.jobs.get("web").wait_over()
                await console.wait_sweeps(2, timeout_s=TIMEOUT_S)
            finally:
                await stop_all(next_one.vms)
            told = [event.detail for event in next_one.vms.events.after(0) if event.happening.value == "JOB"]

        assert (ended.state, ended.reason) == (State.FAILED, "AGENT_RESTARTED")
        assert [detail for detail in told if "the guest runs on" in detail]
        assert parts(place) == []
        assert list((place / "s/jobs").iterdir()) == []
        console.assert_continuous()


@asynccontextmanager
async def guest_left_alone(place: Path, one: Agent) -> AsyncIterator[None]:
    vm = await one.vms.define(domain(Plan(megabytes=16), place, uuid=UUID_1), "web.xml")
    await one.vms.start(vm)
    with Console(place / "serial.log") as console:
        await console.wait_ticks(3, timeout_s=TIMEOUT_S)
    yield


@versions
async def test_a_save_whose_file_was_complete_is_carried_through_by_the_next_agent(place: Path, version: str) -> None:
    file = place / "web.save"
    async with agent(place / "s", version) as one, guest_left_alone(place, one):
        vm = one.vms.get("web")
        await controls.pause(one.vms, vm)
        file.write_bytes(b"complete")
        record = JobRecord(
            "s-1", Kind.SAVE, UUID_1, "web", str(file), str(part_path(file, "s-1")), guest_runs=True, started_at_s=0.0
        )
        JobRecords(place / "s/jobs").save(record)  # as an agent leaves it that is killed between the file and `quit`
        qemu = vm.get_keeper().identity

    async with agent(place / "s", version) as next_one:
        ended = await next_one.jobs.get("web").wait_over()

        assert (ended.state, await next_one.state()) == (State.COMPLETED, VmState.STOPPED)
        assert not qemu.is_alive()
        assert file.exists()


@versions
async def test_an_agent_that_ends_in_a_dump_leaves_the_guest_running(place: Path, version: str) -> None:
    async with agent(place / "s", version) as one, guest_left_alone(place, one):
        await one.jobs.dump(one.vms.get("web"), str(place / "web.kdump"), "kdump-zlib")
        await asyncio.sleep(0.05)
    with Console(place / "serial.log") as console:
        async with agent(place / "s", version) as next_one:
            try:
                ended = await next_one.jobs.get("web").wait_over()
                await console.wait_sweeps(2, timeout_s=TIMEOUT_S)
            finally:
                await stop_all(next_one.vms)

        assert ended.reason == "AGENT_RESTARTED"
        assert "the guest runs on" in ended.error
        assert ((place / "web.kdump").exists(), parts(place)) == (False, [])
        console.assert_continuous()


@versions
async def test_a_dump_cannot_be_cancelled_which_is_said(place: Path, version: str) -> None:
    async with agent(place / "s", version) as one, guest(place, one):
        job = await one.jobs.dump(one.vms.get("web"), str(place / "web.kdump"), "kdump-zlib")

        with pytest.raises(WrongState, match="QEMU carries a dump through"):
            one.jobs.cancel(one.jobs.get(job.id))
        await one.done(job)


@versions
async def test_an_agent_that_ends_in_a_restore_leaves_the_file_and_no_qemu(place: Path, version: str) -> None:
    async with agent(place / "s", version) as one, guest_left_alone(place, one):
        vm = one.vms.get("web")
        definition = vm.definition
        await one.done(await one.jobs.save(vm, ""))
        record = JobRecord("r-1", Kind.RESTORE, UUID_1, "web", str(vm.directory.saved_path), "", guest_runs=True, started_at_s=0.0)
        JobRecords(place / "s/jobs").save(record)  # as an agent leaves it that is killed now
        await one.vms.start_restoring(one.vms.reserve(definition, record.id)[1], definition)
        qemu = vm.get_keeper().identity

    async with agent(place / "s", version) as next_one:
        ended = await next_one.jobs.get("web").wait_over()

        assert ended.state is State.FAILED
        assert "its QEMU was ended, the file is as it was" in ended.error
        assert not qemu.is_alive()
        assert next_one.vms.get("web").has_saved_guest


@versions
async def test_a_full_disk_fails_a_save_and_the_guest_runs_on(place: Path, version: str) -> None:
    (place / "small").mkdir()
    async with _small_disk(place / "small"), agent(place / "s", version) as one, guest(place, one, megabytes=16) as console:
        vm = one.vms.get("web")

        ended = await one.over(await one.jobs.save(vm, str(place / "small/web.save")))
        dumped = await one.over(await one.jobs.dump(vm, str(place / "small/web.elf"), ""))
        await console.wait_sweeps(2, timeout_s=TIMEOUT_S)

        assert ended.state is State.FAILED
        assert "the guest runs on" in ended.error
        assert (dumped.state, dumped.reason) == (State.FAILED, "QEMU_FAILED")
        assert dumped.error.startswith(f"QEMU could not write {place}/small/web.elf: dump: ")
        assert list((place / "small").iterdir()) == []
        console.assert_continuous()


@asynccontextmanager
async def _small_disk(directory: Path) -> AsyncIterator[None]:
    mounting = await asyncio.create_subprocess_exec("mount", "-t", "tmpfs", "-o", "size=2M", "none", str(directory))
    if await mounting.wait() != 0:
        pytest.skip("a small disk needs the right to mount")
    try:
        yield
    finally:
        await (await asyncio.create_subprocess_exec("umount", str(directory))).wait()


@versions
async def test_memory_is_dumped_and_the_guest_goes_on(place: Path, version: str) -> None:
    async with agent(place / "s", version) as one, guest(place, one) as console:
        vm = one.vms.get("web")

        await one.done(await one.jobs.dump(vm, str(place / "web.elf"), ""))
        await one.done(await one.jobs.dump(vm, str(place / "web.kdump"), "kdump-zlib"))
        with pytest.raises(InvalidRequest, match="this QEMU knows elf"):
            await one.jobs.dump(vm, str(place / "web.lzo"), "no-such")
        await console.wait_sweeps(2, timeout_s=TIMEOUT_S)

        assert (place / "web.elf").read_bytes()[:4] == b"\x7fELF"
        assert b"KDUMP" in (place / "web.kdump").read_bytes()[:8192]
        assert await one.state() is VmState.RUNNING
        console.assert_continuous()


async def test_a_damaged_file_is_refused_before_anything_starts_and_stays(place: Path) -> None:
    async with agent(place / "s") as one, guest(place, one):
        file = place / "web.save"
        await one.done(await one.jobs.save(one.vms.get("web"), str(file)))
        content = bytearray(file.read_bytes())
        content[-100] ^= 1
        file.write_bytes(content)

        ended = await one.over(await one.jobs.restore(str(file)))

        assert (ended.state, ended.reason) == (State.FAILED, "SAVE_FILE_DAMAGED")
        assert await one.state() is VmState.STOPPED
        assert file.exists()


async def test_mapped_ram_is_refused_by_name_where_qemu_lacks_it(place: Path) -> None:
    async with agent(place / "s") as one, guest(place, one):
        with pytest.raises(WrongState, match=r"QEMU 7\.2\.\d+ of VM web has no mapped-ram"):
            await one.jobs.save(one.vms.get("web"), str(place / "web.save"), is_mapped_ram=True)


async def test_a_mapped_ram_file_is_refused_before_anything_starts_where_qemu_cannot_read_it(place: Path) -> None:
    file = str(place / "web.save")
    async with agent(place / "s", "10.0") as one, guest(place, one):
        await one.done(await one.jobs.save(one.vms.get("web"), file, is_mapped_ram=True))
    async with agent(place / "t", "7.2") as other:
        with pytest.raises(WrongState, match=r"QEMU 7\.2\.\d+ of VM web has no mapped-ram"):
            await other.jobs.restore(file)

        assert other.vms.all() == []


async def test_a_running_guest_is_not_restored_over(place: Path) -> None:
    async with agent(place / "s") as one, guest(place, one):
        file = str(place / "web.save")
        await one.done(await one.jobs.save(one.vms.get("web"), file))
        await one.done(await one.jobs.restore(file))

        with pytest.raises(WrongState, match="is running already"):
            await one.jobs.restore(file)


async def test_a_guest_of_a_file_that_this_host_has_no_definition_of_is_transient(place: Path) -> None:
    file = place / "web.save"
    async with agent(place / "s") as one, guest(place, one):
        vm = one.vms.get("web")
        await one.done(await one.jobs.save(vm, str(file)))
        await one.vms.undefine(vm)
        content = file.read_bytes()

        file.write_bytes(content[:-1])
        await one.over(await one.jobs.restore(str(file)))
        left = one.vms.all()
        file.write_bytes(content)
        await one.done(await one.jobs.restore(str(file), paused=True))

        assert left == []
        assert (await one.state(), one.vms.get("web").is_persistent) == (VmState.PAUSED, False)
