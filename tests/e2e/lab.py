"""A fleet as a test uses it: guests, moves and faults; and the proof that nothing is left when the test is over."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self
from uuid import uuid4

import grpc
import pytest

from common.errors import FerryError, Unreachable, WrongState
from common.rpc.channel import open_channel
from common.rpc.status import calls_to
from deploy.lab.fleet import HOSTS, Fleet
from deploy.lab.processes import processes_of
from ferry.agent.v1 import agent_service_pb2_grpc as agent_rpc
from ferry.agent.v1 import vm_pb2
from ferry.common.v1 import migration_pb2 as common_pb
from ferry.coordinator.v1 import coordinator_service_pb2 as pb
from ferry.coordinator.v1 import coordinator_service_pb2_grpc as rpc
from tests.e2e.guest import Guest, Plan, domain
from tests.e2e.move import Move, wishes
from tests.e2e.waiting import until, until_equal
from tests.guests.console import Console

TIDY_TIMEOUT_S = 20.0
BOOT_TIMEOUT_S = 20.0
SHOWN_LOG_LINES = 15
RUNNING, PAUSED, STOPPED = "RUNNING", "PAUSED", "STOPPED"


class Lab:
    """A running fleet and what one test has started on it."""

    def __init__(self, fleet: Fleet, directory: Path) -> None:
        self.fleet = fleet
        self.directory = directory
        self._stack = AsyncExitStack()
        identity = fleet.identity("operator")
        self._channels = {host: open_channel(fleet.agent_address(host), identity) for host in HOSTS}
        self._channels["coordinator"] = open_channel(fleet.coordinator_address, identity)
        self.agents = {host: agent_rpc.AgentServiceStub(self._channels[host]) for host in HOSTS}
        self.coordinator = rpc.CoordinatorServiceStub(self._channels["coordinator"])

    async def __aenter__(self) -> Self:
        for channel in self._channels.values():
            self._stack.push_async_callback(channel.close)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def channel(self, host: str) -> grpc.aio.Channel:
        """Give the channel to a host's agent."""
        return self._channels[host]

    # guests

    async def define(self, host: str, xml: bytes) -> vm_pb2.Vm:
        """Define a VM on a host."""
        with calls_to(f"the agent of {host}"):
            return (await self.agents[host].DefineVm(vm_pb2.DefineVmRequest(request_id=str(uuid4()), domain_xml=xml))).vm

    async def start_vm(self, host: str, vm: str, *, paused: bool = False, force: bool = False) -> vm_pb2.Vm:
        """Start a VM on a host."""
        request = vm_pb2.StartVmRequest(request_id=str(uuid4()), vm=vm, paused=paused, force=force)
        with calls_to(f"the agent of {host}"):
            return (await self.agents[host].StartVm(request)).vm

    async def stop_vm(self, host: str, vm: str) -> None:
        """End a VM's QEMU."""
        with calls_to(f"the agent of {host}"):
            await self.agents[host].StopVm(vm_pb2.StopVmRequest(request_id=str(uuid4()), vm=vm, force=True))

    async def undefine(self, host: str, vm: str) -> None:
        """Remove the definition of a VM."""
        with calls_to(f"the agent of {host}"):
            await self.agents[host].UndefineVm(vm_pb2.UndefineVmRequest(request_id=str(uuid4()), vm=vm))

    async def start_guest(self, host: str = "host-a", plan: Plan | None = None, *, force: bool = False) -> Guest:
        """Define and start a tick guest, and wait until it has ticked."""
        plan = plan or Plan()
        uuid = uuid4()
        await self.define(host, domain(plan, self.directory, uuid=uuid))
        await self.start_vm(host, plan.name, force=force)
        return await self.listen(Guest(plan.name, uuid, Console(self.directory / "serial.log"), self.directory))

    async def listen(self, guest: Guest, *, boot_s: float = BOOT_TIMEOUT_S) -> Guest:
        """Follow a guest's console until the test is over, and wait until it has ticked."""
        self._stack.enter_context(guest.console)
        await guest.console.wait_ticks(3, timeout_s=boot_s)
        return guest

    async def vms(self, host: str) -> dict[str, str]:
        """Say in which state each VM of a host is."""
        found = (await self.agents[host].ListVms(vm_pb2.ListVmsRequest())).vms
        return {vm.name: vm_pb2.Vm.State.Name(vm.state).removeprefix("STATE_") for vm in found}

    async def wait_vms(self, host: str, *wanted: str) -> None:
        """Wait until a host knows these VMs and no others."""

        async def names() -> tuple[str, ...]:
            return tuple(await self.vms(host))

        await until_equal(names, wanted, timeout_s=TIDY_TIMEOUT_S)

    async def wait_empty(self, host: str) -> None:
        """Wait until a host knows no VM."""
        await self.wait_vms(host)

    async def vm(self, host: str, name: str) -> vm_pb2.Vm:
        """Show a VM of a host."""
        with calls_to(f"the agent of {host}"):
            return (await self.agents[host].GetVm(vm_pb2.GetVmRequest(vm=name))).vm

    async def qemu_pid(self, host: str, name: str = "web") -> int:
        """Give the process of a VM's QEMU."""
        return (await self.vm(host, name)).pid

    async def assert_only_on(
        self, host: str, guest: Guest, state: str = RUNNING, *, others: tuple[str, ...] = (), is_persistent: bool = True
    ) -> None:
        """Fail unless the guest is on this host alone, stored there, held by no job, with one QEMU in the whole fleet.

        Args:
            others: VMs, stopped ones, that the other host may have.
            is_persistent: whether the host keeps it when it stops.
        """
        other = next(one for one in HOSTS if one != host)
        await self.wait_vms(other, *others)
        await until_equal(lambda: self._job(host, guest.name), "", timeout_s=TIDY_TIMEOUT_S)
        vm = await self.vm(host, guest.name)
        assert vm_pb2.Vm.State.Name(vm.state) == f"STATE_{state}"
        assert vm.uuid == str(guest.uuid)
        assert vm.is_persistent is is_persistent
        pids = [vm.pid] if vm.pid else []
        await until(lambda: self.qemus() == pids, f"no QEMU but {pids}")

    async def _job(self, host: str, name: str) -> str:
        try:
            return (await self.vm(host, name)).job
        except Unreachable as error:  # by a connection from before the network was silent
            return error.text

    def qemus(self) -> list[int]:
        """Find every QEMU of the fleet."""
        servers = {process.pid for process in self.fleet.processes.values() if process.is_running}
        ours = processes_of(self.fleet.directory)
        return [pid for pid in ours if pid not in servers and not _is_guardian(pid) and _is_alive(pid)]

    async def are_hosts_reachable(self) -> bool:
        """Say whether the coordinator reaches every agent."""
        with calls_to("the coordinator"):
            return all(host.is_reachable for host in (await self.coordinator.ListHosts(pb.ListHostsRequest())).hosts)

    # moves

    async def start_move(
        self, vm: str = "web", to: str = "host-b", options: common_pb.MigrationOptions | None = None, *, source: str = ""
    ) -> Move:
        """Let the coordinator accept a migration."""
        request = pb.StartMigrationRequest(
            request_id=str(uuid4()), vm=vm, destination_host=to, source_host=source, options=options or wishes()
        )
        with calls_to("the coordinator"):
            migration = (await self.coordinator.StartMigration(request)).migration
        return self.follow(migration)

    def follow(self, migration: pb.Migration) -> Move:
        """Look at a migration that was started otherwise."""
        source, destination = self.agents[migration.source_host], self.agents[migration.destination_host]
        return Move(migration.id, self.coordinator, source, destination)

    async def try_cancel(self, move: Move) -> bool:
        """Ask for a cancel; say whether it was accepted."""
        try:
            with calls_to("the coordinator"):
                await move.cancel()
        except WrongState:
            return False
        return True

    # faults

    async def kill(self, name: str) -> None:
        """End a server with SIGKILL."""
        await asyncio.to_thread(self.fleet.kill, name)

    async def restart(self, name: str) -> None:
        """Start a server again and wait until it serves."""
        await asyncio.to_thread(self.fleet.restart, name)

    async def wait_reachable(self) -> None:
        """Wait until the coordinator reaches every agent: one that was away is tried again after a moment."""

        async def are_reachable() -> bool:
            with calls_to("the coordinator"):
                hosts = (await self.coordinator.ListHosts(pb.ListHostsRequest())).hosts
            return all(host.is_reachable for host in hosts)

        await until_equal(are_reachable, wanted=True)

    async def update_until_accepted(self, move: Move, *, bandwidth_mib_s: float, disk_bandwidth_mib_s: float | None = None) -> None:
        """Change the bandwidth of a move, again when a server that is being started could not be asked."""

        async def update() -> bool:
            try:
                with calls_to("the coordinator"):
                    await move.update(bandwidth_mib_s=bandwidth_mib_s, disk_bandwidth_mib_s=disk_bandwidth_mib_s)
            except Unreachable:
                return False
            return True

        await until_equal(update, wanted=True)

    # the end

    async def tidy(self) -> None:
        """Stop what the test started.

        Raises:
            AssertionError: something of the test cannot be removed, or is left; the text names it.
        """
        for host, agent in self.agents.items():
            for vm in (await agent.ListVms(vm_pb2.ListVmsRequest())).vms:
                with suppress(grpc.aio.AioRpcError):  # stopped already
                    await agent.StopVm(vm_pb2.StopVmRequest(vm=vm.uuid, force=True))
                if vm.is_persistent:
                    await agent.UndefineVm(vm_pb2.UndefineVmRequest(vm=vm.uuid))
            await self.wait_empty(host)
        await until(lambda: not self.leftovers(), f"nothing left, but there is: {self.leftovers()}", timeout_s=TIDY_TIMEOUT_S)

    def leftovers(self) -> list[str]:
        """Name every process, key, socket and marker of migrations that is still there."""
        found = [f"process {pid}" for pid in self.qemus()]
        found += [f"guardian {pid}" for pid in processes_of(self.fleet.directory) if _is_guardian(pid) and _is_alive(pid)]
        for host in HOSTS:
            state = self.fleet.directory / host
            found += [str(path) for directory in ("keys", "run") for path in (state / directory).iterdir()]
        return found + [str(path) for path in self.directory.glob(".ferry-*")]

    def log_tails(self) -> str:
        """Give what the servers and QEMUs said last."""
        logs = [process.log_path for process in self.fleet.processes.values()]
        logs += sorted(self.fleet.directory.glob("host-*/vms/*/qemu.log"))
        parts = [f"{path}:\n" + "\n".join(path.read_text(errors="replace").splitlines()[-SHOWN_LOG_LINES:]) for path in logs]
        return "\n\n".join(parts)


@contextmanager
def frozen(*pids: int) -> Iterator[Callable[[], None]]:
    """Stop processes with SIGSTOP; they go on when the block ends, or earlier by calling what it gives."""
    stopped = list(pids)

    def go_on() -> None:
        while stopped:
            with suppress(ProcessLookupError):
                os.kill(stopped.pop(), signal.SIGCONT)

    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield go_on
    finally:
        go_on()


@contextmanager
def refused(reason: str, *words: str) -> Iterator[None]:
    """Expect that a call is refused with this reason, in a text that has these words."""
    with pytest.raises(FerryError) as caught, calls_to("the peer"):
        yield
    assert caught.value.reason == reason, caught.value.text
    for word in words:
        assert word in caught.value.text


def now_s() -> float:
    """Read the clock that consoles stamp their ticks with."""
    return time.monotonic()


def _is_guardian(pid: int) -> bool:
    try:
        return b"agent.guardian" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
