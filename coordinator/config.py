"""What an operator decides about a coordinator: a TOML file, overridden by FERRY_COORDINATOR_* variables."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import InvalidRequest
from common.identity import Identity
from common.rpc.address import split_address

ENVIRONMENT_PREFIX: Final = "FERRY_COORDINATOR_"


class HostConfig(BaseModel):
    """One host of the fleet."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    agent: str = Field(description="address of its agent, host:port")
    tunnel: str = Field(default="", description="address of its tunnel, host:port; empty: none")


class CoordinatorConfig(BaseModel):
    """The settings of one coordinator."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    listen: str = Field(default="127.0.0.1:7700", description="address to serve on, host:port")
    state_dir: Path = Field(default=Path("/var/lib/ferry-coordinator"), description="where journal and traces are kept")
    pki: Path | None = Field(default=None, description="directory with ca.pem, cert.pem and key.pem")
    insecure: bool = Field(default=False, description="plain text, on loopback only")
    otlp_endpoint: str = Field(default="", description="OTLP/gRPC collector for spans, as http://host:4317")
    reflection: bool = Field(default=True, description="let gRPC clients ask which services and messages there are")
    log_level: str = Field(default="info", description="debug, info, warning or error")
    max_outgoing: int = Field(default=4, ge=1, description="migrations that a host sends at a time; the rest is queued")
    max_incoming: int = Field(default=4, ge=1, description="migrations that a host receives at a time; the rest is queued")
    hosts: dict[str, HostConfig] = Field(default_factory=dict, description="the hosts of the fleet, by name")

    @property
    def identity(self) -> Identity | None:
        """Certificate files; None for plain text."""
        return None if self.pki is None else Identity.in_directory(self.pki)


def load(path: Path | None) -> CoordinatorConfig:
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
    values.update(_from_environment())
    try:
        config = CoordinatorConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"setting {name}: {first['msg'].lower()}", reason="CONFIG_INVALID", setting=name) from error
    _check_addresses(config)
    if config.pki is None and not config.insecure:
        raise InvalidRequest(
            "no certificates: set pki to a directory made by `ferry pki issue`, or insecure = true to serve plain text on loopback",
            reason="CONFIG_INVALID",
        )
    return config


def _from_environment() -> dict[str, object]:
    values: dict[str, object] = {}
    known = CoordinatorConfig.model_fields.keys() - {"hosts"}
    for variable, value in os.environ.items():
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        if name not in known:
            settings = ", ".join(sorted(ENVIRONMENT_PREFIX + one.upper() for one in known))
            raise InvalidRequest(
                f"environment variable {variable} is no setting; known: {settings}", reason="CONFIG_INVALID", setting=name
            )
        values[name] = value
    return values


def _check_addresses(config: CoordinatorConfig) -> None:
    addresses = {"listen": config.listen}
    for name, host in config.hosts.items():
        addresses[f"hosts.{name}.agent"] = host.agent
        addresses[f"hosts.{name}.tunnel"] = host.tunnel
    for setting, address in addresses.items():
        if address and not address.startswith("unix:"):
            try:
                split_address(address)
            except InvalidRequest as error:
                raise InvalidRequest(f"setting {setting}: {error.text}", reason="CONFIG_INVALID", setting=setting) from error
