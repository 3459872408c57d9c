"""What an operator decides about an agent: a TOML file, overridden by FERRY_AGENT_* variables. Everything has a default."""

from __future__ import annotations

import os
import socket
import tomllib
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.guest_user import GuestUser
from agent.migration.migrate_uri import MAX_PORT, PortRange
from agent.vm.settings import DEFAULT_EMULATORS, DEFAULT_QEMU, VmSettings
from common.errors import InvalidRequest
from common.identity import Identity

ENVIRONMENT_PREFIX: Final = "FERRY_AGENT_"
DEFAULT_TUNNEL_PORT: Final = 7702


class AgentConfig(BaseModel):
    """The settings of one agent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default_factory=socket.gethostname, description="name of this host in the fleet")
    listen: str = Field(default="127.0.0.1:7701", description="address to serve on, host:port")
    advertise: str = Field(default="", description="address for other agents, host:port; empty: listen")
    state_dir: Path = Field(default=Path("/var/lib/ferry"), description="where records are kept")
    run_dir: Path | None = Field(default=None, description="where sockets are kept; a short path; default: run in state_dir")
    pki: Path | None = Field(default=None, description="directory with ca.pem, cert.pem and key.pem")
    insecure: bool = Field(default=False, description="plain text, on loopback only")
    qemu: str = Field(default=DEFAULT_QEMU, description="QEMU for definitions that name none")
    emulators: tuple[str, ...] = Field(default=DEFAULT_EMULATORS, description="paths of QEMU that definitions may name")
    qemu_user: str = Field(default="", description="user that QEMU runs as, when the agent runs as root; empty: the agent's own")
    roots: tuple[Path, ...] = Field(default=(), description="directories that paths of definitions lie in; empty: anywhere")
    migration_address: str = Field(default="", description="address that other QEMUs connect to; empty: that of advertise")
    port_min: int = Field(default=49152, ge=1, le=MAX_PORT, description="first port for incoming migrations")
    port_max: int = Field(default=49215, ge=1, le=MAX_PORT, description="last port for incoming migrations")
    tunnel_address: str = Field(default="", description="address of the tunnel for other tunnels; empty: port 7702 of advertise")
    tunnel_control: Path | None = Field(default=None, description="control socket of the tunnel; default: tunnel.sock in state_dir")
    cgroup_root: Path | None = Field(default=None, description="cgroup in which guests with CPU shares get theirs; default: found")
    otlp_endpoint: str = Field(default="", description="OTLP/gRPC collector for spans, as http://host:4317")
    reflection: bool = Field(default=True, description="let gRPC clients ask which services and messages there are")
    log_level: str = Field(default="info", description="debug, info, warning or error")

    @property
    def advertised_address(self) -> str:
        """Address of this agent for others."""
        return self.advertise or self.listen

    @property
    def advertised_host(self) -> str:
        """Host part of the advertised address, without brackets."""
        return self.advertised_address.rpartition(":")[0].strip("[]")

    @property
    def migration_host(self) -> str:
        """Name or address that other hosts' QEMUs connect to."""
        return self.migration_address or self.advertised_host

    @property
    def tunnel_advertised(self) -> str:
        """Address of this host's tunnel for other tunnels."""
        host = self.advertised_address.rpartition(":")[0]
        return self.tunnel_address or f"{host}:{DEFAULT_TUNNEL_PORT}"

    @property
    def tunnel_socket(self) -> Path:
        """Control socket of this host's tunnel."""
        return self.tunnel_control or self.state_dir / "tunnel.sock"

    @property
    def identity(self) -> Identity | None:
        """Certificate files; None for plain text."""
        return None if self.pki is None else Identity.in_directory(self.pki)

    @property
    def pool(self) -> PortRange:
        """Ports for incoming migrations."""
        return PortRange(self.port_min, self.port_max)

    def vm_settings(self) -> VmSettings:
        """Return what concerns VMs."""
        return VmSettings(qemu=self.qemu, emulators=self.emulators, roots=self.roots, cgroup_root=self.cgroup_root)


def load(path: Path | None) -> AgentConfig:
    """Read the settings.

    Raises:
        InvalidRequest: the file cannot be read, or a setting is wrong; the text names it.
    """
    values: dict[str, object] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidRequest(f"config file {path}: {error.strerror}", reason="CONFIG_UNREADABLE", path=path) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"config file {path}: {error}", reason="CONFIG_MALFORMED", path=path) from error
    for name in AgentConfig.model_fields:
        value = os.environ.get(ENVIRONMENT_PREFIX + name.upper())
        if value is not None:
            values[name] = value.split(",") if name in {"emulators", "roots"} else value
    try:
        config = AgentConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"setting {name}: {first['msg'].lower()}", reason="CONFIG_INVALID", setting=name) from error
    _check(config)
    GuestUser.named(config.qemu_user)
    return config


def _check(config: AgentConfig) -> None:
    if config.port_min > config.port_max:
        raise InvalidRequest(
            f"settings port_min {config.port_min} and port_max {config.port_max}: the first is above the last",
            reason="CONFIG_INVALID",
        )
    if config.pki is None and not config.insecure:
        raise InvalidRequest(
            "no certificates: set pki to a directory made by `ferry pki issue`, or insecure = true to serve plain text on loopback",
            reason="CONFIG_INVALID",
        )
