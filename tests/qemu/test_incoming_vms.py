"""VMs that come from another host and go to one, on a real QEMU."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from agent.qemu.subscription import Event
from agent.vm.events import VmEvents
from agent.vm.jobs import Job
from agent.vm.stored import Stored
from agent.vm.vm import VmState
from common.errors import Busy, WrongState
from tests.qemu.vms import agent, guest_xml, running_definition, wait_booted

UUID_1 = UUID("11111111-0000-0000-0000-000000000001")
UUID_2 = UUID("11111111-0000-0000-0000-000000000002")


def told(events: VmEvents) -> list[tuple[str, str]]:
    """List what was told, without the numbers."""
    return [(event.happening.value, event.reason.value) for event in events.after(0)]


async def test_an_incoming_vm_waits_locked_and_is_gone_after_forget(place: Path) -> None:
    definition = await running_definition(place, UUID_1)
    async with agent(place / "d") as vms:
        vm, lock = await vms.start_incoming(definition, "m-1")
        view = await vms.view(vm)
        with pytest.raises(Busy, match="migration-in m-1"):
            await vms.stop(vm, force=True)
        with pytest.raises(WrongState, match="is taken"):
            await vms.start_incoming(definition, "m-2")

        await vms.forget(lock)
        await vms.forget(lock)
        lock.release()

        assert (view.state, view.is_persistent, view.migration_id) == (VmState.INCOMING, False, "m-1")
        assert view.argv[-3:] == ("-incoming", "defer", "-S")
        assert vms.all() == []
        assert list((place / "d" / "vms").iterdir()) == []
        assert list((place / "d" / "run").iterdir()) == []
        assert told(vms.events) == [("STARTED", "MIGRATED"), ("STOPPED", "FAILED")]


async def test_an_incoming_vm_that_died_keeps_its_last_words_until_released(place: Path) -> None:
    definition = await running_definition(place, UUID_1)
    async with agent(place / "d") as vms:
        vm, lock = await vms.start_incoming(definition, "m-1")
        keeper = vm.get_keeper()
        with (vm.directory.log_path).open("a") as log:
            log.write("qemu-system-x86_64: load of migration failed\n")
        keeper.identity.send_signal(signal.SIGKILL)
        async with asyncio.timeout(5):
            await keeper.ended.wait()

        words = vms.last_words(vm)
        still_there = vms.find(UUID_1)
        lock.release()

        assert words == "load of migration failed"
        assert still_there is vm
        assert vms.find(UUID_1) is None


async def test_a_failed_incoming_start_leaves_nothing(place: Path) -> None:
    definition = await running_definition(place, UUID_1)
    (place / "guest.img").unlink()
    async with agent(place / "d") as vms:
        with pytest.raises(WrongState, match=r"disk vda: .* does not exist"):
            await vms.start_incoming(definition, "m-1")
        with pytest.raises(WrongState, match=r"CPU model Nope is unknown"):
            await vms.start_incoming(replace(definition, disks=(), options=(), cpu=replace(definition.cpu, model="Nope")), "m-1")
        huge = replace(definition, disks=(), options=(), memory_kib=1 << 39, current_memory_kib=1 << 39)
        with pytest.raises(WrongState, match="KiB of memory"):
            await vms.start_incoming(huge, "m-1")

        assert vms.all() == []
        assert list((place / "d" / "vms").iterdir()) == []


async def test_a_guest_moves_from_one_agent_to_another(place: Path) -> None:
    async with agent(place / "s") as source, agent(place / "d") as destination:
        vm = await source.define(guest_xml(place, UUID_1), "web.xml")
        await source.start(vm)
        await wait_booted(place)
        out = source.lock(vm, Job.MIGRATION_OUT, "m-1")
        capabilities = {"events": True, "return-path": True, "late-block-activate": True}
        await source.qemu(vm).set_capabilities(capabilities)
        arrived, into = await destination.start_incoming(vm.get_running().definition, "m-1")
        await destination.qemu(arrived).set_capabilities(capabilities)
        await destination.qemu(arrived).migrate_incoming(f"unix:{place}/m")
        async with asyncio.timeout(20):
            with source.qemu(vm).monitor.subscribe() as notices:
                await source.qemu(vm).migrate(f"unix:{place}/m")
                async for notice in notices:
                    if isinstance(notice, Event) and notice.data == {"status": "completed"}:
                        break
        loaded = await destination.view(arrived)
        await destination.qemu(arrived).cont()

        destination.keep_here(into)
        destination.persist(into, Stored())
        with pytest.raises(WrongState, match="here for good"):
            await destination.forget(into)
        into.release()
        await source.drop(out)
        await source.drop(out)
        out.release()

        assert loaded.state is VmState.INCOMING
        assert source.all() == []
        assert list((place / "s" / "vms").iterdir()) == []
        assert (await destination.view(arrived)).state is VmState.RUNNING
        assert arrived.persistent == replace(arrived.definition, accelerator=None)
        assert told(source.events)[2:] == [
            ("SUSPENDED", "MIGRATED"),
            ("STOPPED", "MIGRATED"),
            ("UNDEFINED", "MIGRATED"),
        ]
        assert told(destination.events) == [("STARTED", "MIGRATED"), ("RESUMED", "MIGRATED"), ("DEFINED", "MIGRATED")]
        await destination.stop(arrived, timeout_s=10)
        assert told(destination.events)[-1] == ("STOPPED", "SHUTDOWN")


async def test_the_next_agent_attaches_to_an_incoming_vm_and_the_migration_takes_it_again(place: Path) -> None:
    definition = await running_definition(place, UUID_1)
    async with agent(place / "d") as vms:
        await vms.start_incoming(definition, "m-1")

    async with agent(place / "d") as vms:
        vm = vms.get("web")
        lock = vms.lock(vm, Job.MIGRATION_IN, "m-1")
        vms.forget_unclaimed()

        assert vm.is_incoming
        assert vm.get_running().migration_id == "m-1"
        await vms.forget(lock)
        lock.release()
        assert vms.all() == []
