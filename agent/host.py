"""What this host is and has, as it tells others."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.migration.order import HostIdentity
from agent.qemu import host_cpu
from agent.vm.host_checks import read_memory_kib
from agent.vm.probes import Probes
from agent.vm.running import read_boot_id
from agent.vm.settings import VmSettings
from common.certificate import check_identity, expiry_warning
from common.errors import FerryError, WrongState
from common.identity import Identity

DEFAULT_CPU: Final = "qemu64"
_NETWORK_NAMESPACE: Final = Path("/proc/self/ns/net")
_PTRACE_CAPABILITY: Final = 19


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found at one look."""

    agent_version: str
    qemu_version: str
    accelerator: str
    memory_kib: tuple[int, int]
    warnings: tuple[str, ...]


class Host:
    """This host."""

    def __init__(self, name: str, settings: VmSettings, probes: Probes, certificate: Identity | None = None) -> None:
        self.identity = HostIdentity(
            name=name,
            boot_id=read_boot_id(),
            network_namespace_inode=_NETWORK_NAMESPACE.stat().st_ino,
            cpu_has_aes=host_cpu.has_aes(),
        )
        self._settings = settings
        self._probes = probes
        self._certificate = certificate
        self._certificate_ends = None if certificate is None else check_identity(certificate)
        self._qemu_version = ""
        self._accelerator = ""
        self._probe_error = ""

    def _find_qemu(self) -> Path:
        found = shutil.which(self._settings.qemu)
        if found is None:
            raise WrongState(f"{self._settings.qemu}: no such program on this host", reason="QEMU_MISSING")
        return Path(found).absolute()

    async def probe(self) -> None:
        """Find out what takes seconds: which QEMU there is, and under what it really runs a guest. Does not raise."""
        try:
            binary = self._find_qemu()
            self._qemu_version = str((await self._probes.facts(binary)).version)
            self._accelerator = (await self._probes.accelerator(binary, DEFAULT_CPU)).value
        except FerryError as error:
            self._probe_error = error.text

    def look(self) -> Findings:
        """Tell what is known; what could not be found out becomes a warning."""
        warnings = [self._probe_error] if self._probe_error else []
        if self._certificate is not None and self._certificate_ends is not None:
            expiry = expiry_warning(self._certificate_ends, self._certificate.certificate)
            warnings += [expiry] if expiry else []
        if not self._accelerator and not self._probe_error:
            warnings.append("the accelerator is still being probed")
        if not _may_ptrace():
            warnings.append(
                "this agent may not copy QEMU's sockets (CAP_SYS_PTRACE is missing), so it cannot free a guest from a silent peer "
                "on a direct connection: use the tunnel"
            )
        return Findings(_agent_version(), self._qemu_version, self._accelerator, read_memory_kib(), tuple(warnings))


def _agent_version() -> str:
    try:
        return importlib.metadata.version("vmferry")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _may_ptrace() -> bool:
    """Say whether sockets of other processes may be copied. Source: capabilities(7), pidfd_getfd(2)."""
    if os.geteuid() == 0:
        return True
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _PTRACE_CAPABILITY & 1)
    return False
