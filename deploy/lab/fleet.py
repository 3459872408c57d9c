"""A fleet on one machine: two hosts, each with agent and tunnel, and a coordinator, all on the loopback.

The demo, the end-to-end tests and the benchmark run on it. Everything that it writes lies in one directory:

    directory/
      pki/                             one authority and a certificate each; absent when insecure
      host-a.toml  host-b.toml  coordinator.toml
      host-a/  host-b/  coordinator/   state of the servers
      agent-a.log  ...                 what they said

Leaving the context ends every process of the fleet, the guests too.
"""

from __future__ import annotations

import contextlib
import enum
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import grpc
from grpc_health.v1 import health_pb2

from common.identity import Identity, Role
from common.pki import init_authority, issue
from deploy.lab.places import OneMachine
from deploy.lab.ports import PortBlock
from deploy.lab.processes import ProcessFailed, ServerProcess, end_processes_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from deploy.lab.places import Places

REPOSITORY = Path(__file__).parents[2]
HOSTS = ("host-a", "host-b")
COORDINATOR = "coordinator"
PROGRAMS = "bin"
"""Directory of a host's own programs, first in the PATH of its servers and their QEMUs."""
READY_TIMEOUT_S = 30.0
COMMAND_TIMEOUT_S = 120.0
_POLL_S = 0.05
_PROBE_TIMEOUT_S = 2.0


class Security(enum.Enum):
    """How the processes talk to each other."""

    MTLS = "mtls"
    INSECURE = "insecure"


class Fleet:
    """Two hosts and a coordinator.

    Use it as a context manager: entering starts the servers and waits until they serve.

    Args:
        directory: an existing directory with a short path: UNIX sockets lie below it.
        qemu: QEMU of each host, by host; without it the agent's default.
        settings: more lines for the agents' configuration files, by host.
        places: where the servers live; without it all on the loopback.
        otlp_endpoint: collector for all servers' spans, as `http://127.0.0.1:4317`.
        environment: more for the environment of the servers.
    """

    def __init__(  # noqa: PLR0913 -- what tests and benchmark vary
        self,
        directory: Path,
        *,
        security: Security = Security.MTLS,
        qemu: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
        places: Places | None = None,
        otlp_endpoint: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory.resolve()
        self.security = security
        self.ports = PortBlock.claim()
        self.processes: dict[str, ServerProcess] = {}
        self._qemu = dict(qemu or {})
        self._settings = dict(settings or {})
        self._places = places or OneMachine()
        self._otlp_endpoint = otlp_endpoint
        self._environment = dict(environment or {})

    def __enter__(self) -> Self:
        """Start everything and wait until it serves.

        Raises:
            ProcessFailed: a server did not come up; nothing is left running.
        """
        try:
            self._ensure_certificates()
            for index, host in enumerate(HOSTS):
                self._add_host(index, host)
            self._add_coordinator()
            for process in self.processes.values():
                process.start()
            for name in self.processes:
                self.wait_ready(name)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """End every process of the fleet."""
        self.stop()

    @property
    def coordinator_address(self) -> str:
        """Address of the coordinator."""
        return self._address(COORDINATOR, 0)

    def agent_address(self, host: str) -> str:
        """Address of a host's agent."""
        return self._address(host, 1 + HOSTS.index(host))

    def tunnel_address(self, host: str) -> str:
        """Address of a host's tunnel."""
        return self._address(host, 3 + HOSTS.index(host))

    def pki(self, name: str) -> Path:
        """Give the directory of a certificate: `operator`, a host or `coordinator`."""
        return self.directory / "pki" / name

    def identity(self, name: str) -> Identity | None:
        """Give a certificate, for clients of the fleet's servers; None when insecure."""
        return Identity.in_directory(self.pki(name)) if self.security is Security.MTLS else None

    @property
    def environment(self) -> dict[str, str]:
        """The environment for `ferry`, which tells it where this fleet is."""
        pki = str(self.pki("operator")) if self.security is Security.MTLS else "none"
        return {**_clean_environment(), "FERRY_COORDINATOR": self.coordinator_address, "FERRY_PKI": pki}

    def ferry(self, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a `ferry` command to its end.

        Raises:
            ProcessFailed: with `check`, its exit code was not 0.
            TimeoutExpired: it did not end in time.
        """
        done = subprocess.run(
            ferry_argv(*arguments),
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            raise ProcessFailed(f"ferry {shlex.join(arguments)} ended with {done.returncode}:\n{done.stderr}{done.stdout}")
        return done

    def pid(self, name: str) -> int:
        """Process id of `agent-a`, `agent-b`, `tunnel-a`, `tunnel-b` or `coordinator`."""
        return self.processes[name].pid

    def restart(self, name: str) -> None:
        """Start a server again, stopping it first if it runs, and wait until it serves."""
        self.processes[name].stop()
        self.processes[name].start()
        self.wait_ready(name)

    def kill(self, name: str) -> None:
        """End a server with SIGKILL."""
        self.processes[name].kill()

    def wait_ready(self, name: str) -> None:
        """Wait until a server says that it serves.

        Raises:
            ProcessFailed: it ended, or does not serve in time.
        """
        process = self.processes[name]
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        with self._channel(name) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            while True:
                if not process.is_running:
                    raise ProcessFailed(f"{name} ended while starting; {process.last_words()}")
                with contextlib.suppress(grpc.RpcError):
                    answer = check(health_pb2.HealthCheckRequest(), timeout=_PROBE_TIMEOUT_S)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                if time.monotonic() > deadline_s:
                    raise ProcessFailed(f"{name} does not serve after {READY_TIMEOUT_S:.0f} s; {process.last_words()}")
                time.sleep(_POLL_S)

    def stop(self) -> None:
        """End every process of the fleet, the guests too; the directory stays."""
        for process in self.processes.values():
            process.ask_to_end()
        for process in self.processes.values():
            process.stop()
        end_processes_of(self.directory)
        self.ports.close()

    def _address(self, place: str, index: int) -> str:
        return f"{self._places.address(place)}:{self.ports.server(index)}"

    def _channel(self, name: str) -> grpc.Channel:
        kind, _, letter = name.partition("-")
        match kind:
            case "agent":
                address = self.agent_address(f"host-{letter}")
            case "tunnel":
                address = self.tunnel_address(f"host-{letter}")
            case _:
                address = self.coordinator_address
        identity = self.identity("operator")
        options = (("grpc.max_reconnect_backoff_ms", 100), ("grpc.enable_http_proxy", 0))
        if identity is None:
            return grpc.insecure_channel(address, options)
        authority, certificate, key = identity.read()
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, key, certificate), options)

    def _ensure_certificates(self) -> None:
        """Make what is missing; the demo has made them by `ferry pki` before."""
        authority = self.directory / "pki" / "ca"
        if self.security is Security.INSECURE:
            return
        if not authority.exists():
            init_authority(authority)
        roles = {COORDINATOR: Role.COORDINATOR, "operator": Role.OPERATOR, **dict.fromkeys(HOSTS, Role.AGENT)}
        for name, role in roles.items():
            if not self.pki(name).exists():
                issue(authority, self.pki(name), name, role, [self._places.address(name)])

    def _add_host(self, index: int, host: str) -> None:
        letter = host.removeprefix("host-")
        state = self.directory / host
        state.mkdir(mode=0o700, exist_ok=True)
        control = state / "tunnel.sock"
        pool = self.ports.pool(index)
        lines = [
            f'name = "{host}"',
            f'listen = "{self.agent_address(host)}"',
            f'state_dir = "{state}"',
            f'tunnel_address = "{self.tunnel_address(host)}"',
            f'tunnel_control = "{control}"',
            f"port_min = {pool.first}",
            f"port_max = {pool.last}",
            *([f'qemu = "{self._qemu[host]}"'] if host in self._qemu else []),
            self._settings.get(host, ""),
        ]
        config = self._write_config(host, lines)
        self._add(f"agent-{letter}", host, "agent", "--config", str(config))
        security = ("--pki", str(self.pki(host))) if self.security is Security.MTLS else ("--insecure",)
        listen = ("--listen", self.tunnel_address(host), "--control", str(control), "--name", host)
        self._add(f"tunnel-{letter}", host, "agent.tunnel", *listen, *security)

    def _add_coordinator(self) -> None:
        state = self.directory / COORDINATOR
        state.mkdir(mode=0o700, exist_ok=True)
        lines = [f'listen = "{self.coordinator_address}"', f'state_dir = "{state}"']
        hosts = []
        for host in HOSTS:
            hosts += [
                f"[hosts.{host}]",
                f'agent = "{self.agent_address(host)}"',
                f'tunnel = "{self.tunnel_address(host)}"',
            ]
        config = self._write_config(COORDINATOR, lines, hosts)
        self._add(COORDINATOR, COORDINATOR, "coordinator", "--config", str(config))

    def _write_config(self, name: str, lines: list[str], tables: list[str] | None = None) -> Path:
        security = f'pki = "{self.pki(name)}"' if self.security is Security.MTLS else "insecure = true"
        otlp = f'otlp_endpoint = "{self._otlp_endpoint}"' if self._otlp_endpoint else ""
        path = self.directory / f"{name}.toml"
        path.write_text("\n".join(line for line in (*lines, security, otlp, *(tables or ())) if line) + "\n")
        return path

    def _add(self, name: str, place: str, module: str, *arguments: str) -> None:
        argv = (*self._places.prefix(place), sys.executable, "-m", module, *arguments)
        log_path = self.directory / f"{name}.log"
        path = f"{self.directory / place / PROGRAMS}{os.pathsep}{os.environ['PATH']}"
        environment = {**_clean_environment(), "PATH": path, **self._environment}
        self.processes[name] = ServerProcess(name, argv, log_path, environment=environment, cwd=REPOSITORY)


def ferry_argv(*arguments: str) -> tuple[str, ...]:
    """Give the command line of `ferry`, installed or not."""
    return (sys.executable, "-m", "coordinator.cli", *arguments)


def _clean_environment() -> dict[str, str]:
    """Pass this process's environment on, but no setting of Ferry's that the user may have in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FERRY_", "OTEL_"))}
    return {**kept, "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "protos"))), "PYTHONUNBUFFERED": "1"}
