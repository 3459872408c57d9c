"""One round on a Ferry fleet: start a guest, let it move, do the fault, mend it, and look from outside at what is left."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from common.errors import FerryError
from common.rpc.status import calls_to
from deploy.lab.fleet import COORDINATOR, HOSTS, ferry_argv
from ferry.agent.v1 import doctor_service_pb2 as doctor_pb
from ferry.agent.v1 import doctor_service_pb2_grpc as doctor_rpc
from ferry.common.v1 import disks_pb2 as disks_pb
from ferry.common.v1 import migration_pb2 as common_pb
from ferry.coordinator.v1 import coordinator_service_pb2 as pb
from tests.chaos.advice import commands
from tests.chaos.case import Case, Kind
from tests.chaos.faults import Injector, Place, copy_journal
from tests.chaos.speakers import Speakers, find_open
from tests.chaos.verdict import Ending, Observed, judge
from tests.chaos.watch import PhaseWatch, Seen
from tests.e2e.disk_guest import Disk, DiskPlan, WritingGuest, leave, start_disk_guest
from tests.e2e.guest import Guest, Plan
from tests.e2e.lab import Lab
from tests.e2e.move import WAYS, State, Where, post_copy, wishes
from tests.guests.disk import Area

MOMENT_TIMEOUT_S = 6.0
OUTCOME_TIMEOUT_S = 40.0
SETTLE_TIMEOUT_S = 15.0
SPEAKS_WITHIN_S = 0.5
COMMAND_TIMEOUT_S = 60.0
_POLL_S = 0.1
_AREA = Area(slot_count=256, write_mib_s=1.0, verify_mib_s=1.0)
_OVER = ("Retired", "Kept", "Lost")
_FINAL = {State.STATE_SUCCEEDED: "succeeded", State.STATE_FAILED: "failed", State.STATE_CANCELLED: "cancelled"}


@dataclass
class Result:
    """What came of a round.

    Attributes:
        wrong: what is wrong; empty when all is as it must be.
        phases: those that were seen, in seconds since the start of the move.
    """

    case: Case
    seen: Observed
    wrong: list[str]
    phases: list[tuple[float, str, str]] = field(default_factory=list)
    done_at_s: float | None = None
    took_s: float = 0.0


async def run_round(place: Place, case: Case, directory: Path) -> Result:
    """Run a case on a fleet that has no VM; the fleet is to be replaced when the result is not empty."""
    began_s = time.monotonic()
    journal = directory / "journal.copy"
    await asyncio.to_thread(copy_journal, place.fleet.directory / COORDINATOR, journal)
    async with Lab(place.fleet, directory) as lab:
        guest = await _start_guest(lab, case)
        one = _Round(lab, place, case, guest, Injector(case, place, journal))
        seen = await one.run()
        wrong = judge(case, seen)
        if not wrong:
            try:
                await lab.tidy()
            except (AssertionError, TimeoutError, FerryError, grpc.aio.AioRpcError) as error:
                wrong.append(f"left: {error}")
        return Result(case, seen, wrong, one.timeline, one.done_after_s, time.monotonic() - began_s)


async def _start_guest(lab: Lab, case: Case) -> Guest:
    if not case.kind.has_disks:
        return await lab.start_guest(case.source, Plan(megabytes=16, dirty_mib_s=4.0))
    plan = DiskPlan(disks=(Disk(size_mib=16, area=_AREA),))
    return await start_disk_guest(lab, plan, host=case.source)


class _Round:
    def __init__(self, lab: Lab, place: Place, case: Case, guest: Guest, injector: Injector) -> None:
        self._lab, self._place, self._case, self._guest, self._injector = lab, place, case, guest, injector
        self._migration_id = ""
        self._copies: dict[str, Path] = {}
        self._since_s = time.monotonic()
        self._fault = threading.Thread(target=self._do_fault, name="fault", daemon=True)
        self._fault_error: BaseException | None = None
        self._hit: tuple[str, str] = ("", "")
        self.timeline: list[tuple[float, str, str]] = []
        self.done_after_s: float | None = None

    async def run(self) -> Observed:
        log = self._guest.directory / "serial.log"
        fleet, case = self._place.fleet, self._case
        directories = {
            "source": fleet.directory / case.source / "sessions",
            "destination": fleet.directory / case.destination / "sessions",
        }
        limit_s = time.monotonic() + (MOMENT_TIMEOUT_S if case.moment.side else 0.0)
        watch = PhaseWatch(directories, self._is_moment, self._fault.start, limit_s)
        with Speakers(log, self._place.all_qemus) as speakers:
            with watch:
                self._watched = watch.seen
                refusal = await self._begin()
                await asyncio.to_thread(self._wait_for_fault)
                if self._fault_error is not None:
                    raise self._fault_error
                if watch.error is not None:
                    raise watch.error
                self._migration_id = self._migration_id or watch.migration_id
                ending = await self._ending(refusal)
            seen = Observed(ending)
            self._fill_in(seen, watch.seen)
            await self._advised(seen)
            await self._look(seen, speakers)
            if seen.speakers and not seen.was_restarted and not judge(case, seen):
                await self._move_again(seen)
                first, seen.speakers = seen.speakers, []
                await self._look(seen, speakers)
                seen.speakers, seen.second_speakers = first, seen.speakers
                await self._examine_disk(seen)
        return seen

    # the fault

    def _is_moment(self, side: str, phase: str) -> bool:
        """Also when all is over without the phase that was waited for: some last too short to be written down."""
        moment = self._case.moment
        return bool(moment.side) and ((side, phase) == (moment.side, moment.phase) or (side == "source" and phase in _OVER))

    def _do_fault(self) -> None:
        try:
            time.sleep(self._case.moment.after_s)
            self._hit = (self._watched.latest("source"), self._watched.latest("destination"))
            self._injector.act()
            time.sleep(self._case.lasts_s)
            self._injector.mend()
        except BaseException as error:  # noqa: BLE001 -- told by the round
            self._fault_error = error

    def _wait_for_fault(self) -> None:
        limit_s = time.monotonic() + MOMENT_TIMEOUT_S + self._case.lasts_s + OUTCOME_TIMEOUT_S
        while not self._fault.is_alive() and self._injector.done_at_s is None and self._fault_error is None:
            if time.monotonic() > limit_s:
                raise TimeoutError("the fault was never done")
            time.sleep(_POLL_S)
        self._fault.join()

    # the move

    async def _begin(self) -> str:
        """Start the move; say why it was refused, empty when it was not."""
        self._since_s = time.monotonic()
        options = self._options(self._case.destination)
        if self._case.by_command:
            self._injector.client = await asyncio.to_thread(self._start_client, options)
            return ""
        try:
            self._migration_id = (await self._lab.start_move(to=self._case.destination, options=options)).id
        except FerryError as error:
            return f"{error.text} [{error.reason}]"
        return ""

    def _start_client(self, options: common_pb.MigrationOptions) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ferry_argv("migrate", self._guest.name, "--to", self._case.destination, *self._words(options)),
            env=self._place.fleet.environment,
            cwd=self._place.fleet.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _options(self, destination: str) -> common_pb.MigrationOptions:
        bandwidth = self._case.bandwidth_mib_s
        disks = None
        if isinstance(self._guest, WritingGuest):
            copy = self._guest.directory / f"on-{destination}.qcow2"
            self._copies[destination] = copy
            disks = disks_pb.DiskWishes(which=disks_pb.DiskWishes.WHICH_NAMED, names=["vdb"], destination_paths={"vdb": str(copy)})
        after = post_copy() if self._case.kind.is_postcopy else None
        if after is not None:
            return wishes(tunnel=self._case.kind.is_tunnelled, bandwidth_mib_s=bandwidth, post_copy=after, disks=disks)
        way = {Kind.PLAIN: "plain", Kind.MULTIFD: "multifd"}.get(
            self._case.kind, "tunnel" if self._case.kind.is_tunnelled else "psk"
        )
        return WAYS[way](bandwidth_mib_s=bandwidth, disks=disks)

    def _words(self, options: common_pb.MigrationOptions) -> list[str]:
        words = []
        if options.transport == common_pb.TRANSPORT_TUNNEL:
            words.append("--tunnel")
        if options.plain:
            words.append("--plain")
        if options.multifd_channel_count:
            words += ["--multifd", str(options.multifd_channel_count)]
        if options.bandwidth_bytes_per_second:
            words += ["--bandwidth", f"{options.bandwidth_bytes_per_second >> 20}MiB"]
        if self._case.kind.is_postcopy:
            words += ["--postcopy", "after-first-pass"]
        for target, path in options.disks.destination_paths.items():
            words += ["--disks", target, "--dest-path", f"{target}={path}"]
        return words

    async def _ending(self, refusal: str) -> Ending:
        """Ask the coordinator what came of it, for as long as a move may take after its fault."""
        limit_s = time.monotonic() + OUTCOME_TIMEOUT_S
        if self._injector.client is not None:
            with suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._injector.client.wait, OUTCOME_TIMEOUT_S)
            self._injector.client.kill()
            self._injector.client.wait()
        last = Ending("not begun", self._case.source, refusal)
        while time.monotonic() < limit_s:
            with suppress(FerryError), calls_to("the coordinator"):
                found = (await self._lab.coordinator.ListMigrations(pb.ListMigrationsRequest(page_size=50))).migrations
                mine = [one for one in found if one.id == self._migration_id] if self._migration_id else []
                if not mine and not await self._is_held():
                    return Ending("not begun", self._case.source, refusal or "no migration is known of it")
                if mine:
                    last = _ending_of(mine[0])
                    if last.is_final:
                        return last
                else:
                    last = Ending("unknown to the coordinator", "", refusal)
            await asyncio.sleep(_POLL_S)
        return last

    async def _is_held(self) -> bool:
        """Say whether an agent holds a side of a migration of the guest that is not over."""
        for host in HOSTS:
            with suppress(FerryError):
                vm = await self._lab.vm(host, self._guest.name)
                if vm.job:
                    return True
        return False

    # what is there afterwards

    def _fill_in(self, seen: Observed, phases: Seen) -> None:
        seen.source_phase, seen.destination_phase = self._hit
        seen.has_hit_qemu = bool(self._injector.ended)
        self.timeline = [(round(at_s - self._since_s, 4), side, phase) for at_s, side, phase in phases.phases]
        if self._injector.done_at_s is not None:
            self.done_after_s = round(self._injector.done_at_s - self._since_s, 4)

    async def _advised(self, seen: Observed) -> None:
        """Do what the texts advise, as long as the guest does not run or the migration has not ended."""
        for _ in range(3):
            await asyncio.sleep(SPEAKS_WITHIN_S)
            if seen.ending.is_final and self._speaks():
                return
            texts = [seen.ending.text]
            if self._migration_id:
                shown = await self._ferry("migration", "show", self._migration_id)
                texts.append(shown.stderr)
            advised = [words for text in texts for words in commands(text)]
            new = [words for words in advised if " ".join(words) not in {command for command, _, _ in seen.followed}]
            if not new and seen.ending.state == "succeeded" and seen.has_hit_qemu and not seen.followed:
                new = [("vm", "start", self._guest.name, "--host", seen.ending.host)]  # it ended after the move was over
            if not new:
                return
            words = (*new[0], "--yes") if new[0][:2] == ("migration", "fence") else new[0]
            is_start = new[0][:2] == ("vm", "start")
            states = self._disks_before_start(seen) if is_start else {}
            done = await self._ferry(*words)
            if is_start and done.returncode == 0:
                await self._see_restarted(seen, states)
            seen.followed.append((" ".join(new[0]), done.returncode, done.stderr.strip()[-300:]))
            if self._migration_id:
                seen.ending = await self._ending("")

    def _disks_before_start(self, seen: Observed) -> dict[Path, str]:
        """Say of each image that the guest may be started with what is missing of what was flushed; empty when nothing is."""
        seen.complaints = list(self._guest.console.story.complaints)
        if not isinstance(self._guest, WritingGuest):
            return {}
        found = {}
        for path in (self._guest.images["vdb"], *self._copies.values()):
            if path.exists():
                try:
                    self._guest.assert_flushed("vdb", path)
                    found[path] = ""
                except AssertionError as error:
                    found[path] = str(error)[:300]
        return found

    async def _see_restarted(self, seen: Observed, states: dict[Path, str]) -> None:
        """See with which image the guest was started."""
        seen.was_restarted = True
        for pid in self._place.all_qemus():
            for path, missing in states.items():
                if missing and find_open(pid, path) is not None:
                    seen.disk_errors.append(f"the guest was started with {path}, where flushed writes are missing: {missing}")
        with suppress(TimeoutError):
            await self._guest.console.wait_ticks(3)

    def _speaks(self) -> bool:
        ticks = self._guest.console.ticks
        return bool(ticks) and time.monotonic() - ticks[-1].arrived_at_s < SPEAKS_WITHIN_S

    async def _look(self, seen: Observed, speakers: Speakers) -> None:
        """See who speaks, and what is left, giving it time to go."""
        limit_s = time.monotonic() + SETTLE_TIMEOUT_S
        while True:
            since_s = time.monotonic()
            await asyncio.sleep(SPEAKS_WITHIN_S)
            seen.speakers = sorted({self._place.host_of(pid) for pid in speakers.since(since_s)} - {""})
            seen.qemus = [host for host in HOSTS if self._place.qemus(host)]
            seen.findings = await self._findings()
            seen.leftovers = self._leftovers(seen)
            if (not seen.findings and not seen.leftovers) or time.monotonic() > limit_s:
                break
        if seen.was_restarted:
            return
        seen.complaints = list(self._guest.console.story.complaints)
        if seen.speakers:
            seen.longest_gap_s = self._guest.console.max_gap_s(self._since_s)

    def _leftovers(self, seen: Observed) -> list[str]:
        found = [f"a QEMU on {host} beside the guest's" for host in seen.qemus if seen.speakers and host not in seen.speakers]
        return found + [str(path) for path in self._guest.directory.glob(".ferry-*")]

    async def _findings(self) -> list[str]:
        found: list[str] = []
        for host in HOSTS:
            stub = doctor_rpc.DoctorServiceStub(self._lab.channel(host))
            try:
                answer = await stub.Examine(doctor_pb.ExamineRequest())
            except grpc.aio.AioRpcError as error:
                found.append(f"{host}: {error.details()}")
                continue
            found += [f"{host}: {one.kind} {one.name}: {one.text}; {one.advice}" for one in answer.findings]
        return found

    async def _move_again(self, seen: Observed) -> None:
        """Move the guest to the other host, wherever it is now."""
        [source] = seen.speakers
        destination = next(host for host in HOSTS if host != source)
        try:
            await self._lab.wait_reachable()
            options = self._options(destination)
            move = await self._lab.start_move(to=destination, options=options, source=source)
            seen.second = _ending_of(await move.outcome())
        except (FerryError, TimeoutError, AssertionError) as error:
            seen.second = Ending("refused", source, str(error))

    async def _examine_disk(self, seen: Observed) -> None:
        """Let the guest power off, and compare every sector of the image that it wrote to last."""
        if not isinstance(self._guest, WritingGuest) or len(seen.second_speakers) != 1:
            return
        [host] = seen.second_speakers
        image = (await self._lab.vm(host, self._guest.name)).files.get("vdb") or str(self._copies.get(host, ""))
        await leave(self._lab, self._guest, host)
        try:
            self._guest.assert_disk("vdb", self._image(host, image), is_final=True)
        except AssertionError as error:
            seen.disk_errors.append(str(error)[:500])
        for path in self._copies.values():
            path.unlink(missing_ok=True)

    def _image(self, host: str, told: str) -> Path:
        """Say where the guest's newest disk is: its copy, if it came by a move that made one, else where it began."""
        copy = self._copies.get(host)
        return Path(told) if told else copy if copy is not None and copy.exists() else self._guest.images["vdb"]  # type: ignore[attr-defined]

    async def _ferry(self, *words: str) -> subprocess.CompletedProcess[str]:
        try:
            return await asyncio.to_thread(self._place.fleet.ferry, *words, timeout_s=COMMAND_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(words, 124, "", f"no end in {COMMAND_TIMEOUT_S:g} s")


def _ending_of(migration: pb.Migration) -> Ending:
    state = _FINAL.get(migration.state) or State.Name(migration.state).removeprefix("STATE_").lower()
    host = {
        Where.GUEST_LOCATION_SOURCE: migration.source_host,
        Where.GUEST_LOCATION_DESTINATION: migration.destination_host,
    }.get(migration.guest_location, "")
    return Ending(state, host, migration.error, migration.error_reason)
