"""One agent, put together."""

from __future__ import annotations

import asyncio
import gc
from contextlib import AsyncExitStack
from typing import Final

import grpc
import structlog

from agent.blockjobs import servicer as blocks
from agent.blockjobs.block_jobs import BlockJobs
from agent.config import AgentConfig
from agent.doctor import servicer as doctor
from agent.guardian.life import Guardians
from agent.guest_user import GuestUser
from agent.host import Host
from agent.migration.migrations import Migrations
from agent.migration.surroundings import Surroundings
from agent.peers import RemotePeers
from agent.plan.servicer import PlanServicer
from agent.saving import servicer as saving
from agent.saving.vm_jobs import VmJobs
from agent.servicer import AgentServicer
from agent.store import Store
from agent.tunnel.client import TunnelClient
from agent.vm.autostart import start_marked
from agent.vm.lifecycle import Vms
from agent.vm.probes import HostProbes
from common.identity import Role
from common.rpc.auditing import Auditing
from common.rpc.server import Allowed, Service, serve
from common.storage import storing
from common.tasks import OwnedTasks
from common.telemetry import SpanBuffer
from ferry.agent.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    block_service_pb2,
    block_service_pb2_grpc,
    doctor_service_pb2,
    doctor_service_pb2_grpc,
    plan_service_pb2,
    plan_service_pb2_grpc,
    save_service_pb2,
    save_service_pb2_grpc,
)

_CHANGERS: Final = frozenset({Role.COORDINATOR, Role.OPERATOR})
_READERS: Final = frozenset({Role.COORDINATOR, Role.OPERATOR, Role.VIEWER})
ALLOWED: Final = Allowed(
    default=_CHANGERS,
    methods={
        "ResumeMigration": frozenset({Role.AGENT, Role.COORDINATOR}),
        "AbandonMigration": _CHANGERS | {Role.AGENT},
        "HandOver": frozenset({Role.AGENT}),
        "ReportChannels": frozenset({Role.AGENT}),
        "PingMigration": frozenset({Role.AGENT}),
        "ClaimGuest": frozenset({Role.AGENT}),
        "ProvePath": frozenset({Role.AGENT}),
        "ReopenMigration": frozenset({Role.AGENT}),
        "WatchMigration": frozenset(Role),
        **dict.fromkeys(
            (
                "GetHost",
                "GetVm",
                "ListVms",
                "WatchEvents",
                "ListEvents",
                "GetMigration",
                "ListMigrations",
                "WaitMigration",
                "ListMigrationStatistics",
                "ListSpans",
                *saving.READERS,
                *blocks.READERS,
                *doctor.READERS,
            ),
            _READERS,
        ),
    },
)
# What only looks, or is asked all the time by a peer; refusals of these are audited all the same.
NOT_AUDITED: Final = frozenset(
    {"GetHost", "ListSpans", "GetVm", "ListVms", "WatchEvents", "ListEvents", "GetMigration", "ListMigrations"}
    | {"WatchMigration", "WaitMigration", "ReportChannels", "PingMigration"}
)
_log = structlog.get_logger()


async def run(config: AgentConfig, spans: SpanBuffer, stopping: asyncio.Event) -> None:
    """Serve until told to stop; every QEMU and every migration goes on without us.

    Raises:
        FerryError: the agent cannot serve as configured.
    """
    settings = config.vm_settings()
    with storing(config.state_dir):
        store = Store(config.state_dir, run_dir=config.run_dir, guests=GuestUser.named(config.qemu_user))
    probes = HostProbes(store.cache_dir, store.guests)
    host = Host(config.name, settings, probes, config.identity)
    async with AsyncExitStack() as stack:
        guardians = Guardians(store.state_dir, () if config.identity is None else tuple(map(str, config.identity.paths())))
        guardians.end_left()  # before this agent connects to any QEMU, which serves one client at a time
        vms = await stack.enter_async_context(Vms(store, settings, probes))
        tunnel = await stack.enter_async_context(TunnelClient(config.tunnel_socket))
        sessions = await stack.enter_async_context(OwnedTasks())
        around = Surroundings(
            identity=host.identity,
            vms=vms,
            store=store,
            peers=RemotePeers(config.identity),
            tunnel=tunnel,
            pool=config.pool,
            migration_address=config.migration_host,
            advertised_address=config.advertised_address,
            tunnel_address=config.tunnel_advertised,
            guardians=guardians,
        )
        migrations = Migrations(around, sessions)
        migrations.restore()
        jobs = VmJobs(vms, store, sessions)
        jobs.resume()
        block_jobs = BlockJobs(vms, store, sessions)
        block_jobs.resume()
        vms.forget_unclaimed()
        sessions.start(host.probe())
        servicer = AgentServicer(host, vms, migrations, advertised_address=config.advertised_address, spans_of=spans.spans_of)

        def add(server: grpc.aio.Server) -> None:
            agent_service_pb2_grpc.add_AgentServiceServicer_to_server(servicer, server)

        auditing = Auditing(store.state_dir)
        description = agent_service_pb2.DESCRIPTOR.services_by_name["AgentService"]
        saves = save_service_pb2.DESCRIPTOR.services_by_name["SaveService"]

        def add_saves(server: grpc.aio.Server) -> None:
            save_service_pb2_grpc.add_SaveServiceServicer_to_server(saving.SaveServicer(vms, jobs), server)

        plans = plan_service_pb2.DESCRIPTOR.services_by_name["PlanService"]

        def add_plans(server: grpc.aio.Server) -> None:
            plan_service_pb2_grpc.add_PlanServiceServicer_to_server(PlanServicer(around), server)

        disks = block_service_pb2.DESCRIPTOR.services_by_name["BlockService"]

        def add_disks(server: grpc.aio.Server) -> None:
            block_service_pb2_grpc.add_BlockServiceServicer_to_server(blocks.BlockServicer(vms, block_jobs), server)

        doctors = doctor_service_pb2.DESCRIPTOR.services_by_name["DoctorService"]

        def add_doctor(server: grpc.aio.Server) -> None:
            examiner = doctor.DoctorServicer(vms, store, block_jobs, settings.roots)
            doctor_service_pb2_grpc.add_DoctorServiceServicer_to_server(examiner, server)

        changing = {*description.methods_by_name, *saves.methods_by_name, *disks.methods_by_name}
        audit = auditing.interceptor(frozenset(changing - NOT_AUDITED - saving.READERS - blocks.READERS))
        services = [
            Service(description.full_name, add, audit),
            Service(saves.full_name, add_saves),
            Service(plans.full_name, add_plans),
            Service(disks.full_name, add_disks),
            Service(doctors.full_name, add_doctor),
        ]
        await stack.enter_async_context(
            serve(config.listen, config.identity, services, allowed=ALLOWED, reflects=config.reflection)
        )
        sessions.start(start_marked(vms, store, lambda vm, error: auditing.tell_own("autostart", vm.name, error)))
        gc.collect()
        gc.freeze()  # a collection of all that was loaded would stand in the way of a hand-over
        _log.info("ready", host=config.name, listen=config.listen, state_dir=str(config.state_dir))
        await stopping.wait()
        _log.info("stopping", host=config.name)
