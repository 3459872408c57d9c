"""The gRPC edge of looking for what is left over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import grpc

from agent.blockjobs.block_jobs import BlockJobs
from agent.doctor.examine import Finding, examine
from agent.store import Store
from agent.vm.lifecycle import Vms
from ferry.agent.v1 import doctor_service_pb2 as pb
from ferry.agent.v1 import doctor_service_pb2_grpc as rpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

READERS: Final = frozenset({"Examine"})


class DoctorServicer(rpc.DoctorServiceServicer):
    """Answers what is left over on this host."""

    def __init__(self, vms: Vms, store: Store, jobs: BlockJobs, roots: Sequence[Path]) -> None:
        self._vms = vms
        self._store = store
        self._jobs = jobs
        self._roots = roots

    async def Examine(self, request: pb.ExamineRequest, context: Context) -> pb.ExamineResponse:
        """Look for it."""
        findings = await examine(self._vms, self._store, self._jobs, self._roots)
        return pb.ExamineResponse(findings=[_finding(one) for one in findings], vm_count=len(self._vms.all()))


def _finding(found: Finding) -> pb.Finding:
    return pb.Finding(vm_name=found.vm_name, kind=found.kind, name=found.name, text=found.text, advice=found.advice)
