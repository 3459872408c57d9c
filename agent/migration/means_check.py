"""What each side of a migration can do, and the refusal of what one of them cannot. Pure.

A name is QEMU's own, all in one name space: a capability (`multifd`), a parameter (`avail-switchover-bandwidth`), a value of a
parameter (`multifd-compression=zstd`), or an object (`tls-creds-psk`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from agent.migration.order import Role
from common.errors import WrongState

OPTIONAL: Final = ("validate-uuid", "switchover-ack")
"""Capabilities without a wish: on wherever both sides have them. One of them on the source alone would hang the move."""
OPTIONAL_IN_POST_COPY: Final = ("postcopy-blocktime",)
"""The same of post-copy: how long vCPUs waited for pages is told by the destination; it costs some atomic operations a fault."""


@dataclass(frozen=True, slots=True)
class Ability:
    """What one side can do.

    Attributes:
        host: name of the host.
        qemu_version: as `10.0.2`.
        known: the names that its QEMU knows.
        problems: why the host, or this guest, cannot use what its QEMU knows, by name.
    """

    side: Role
    host: str
    qemu_version: str
    known: frozenset[str]
    problems: Mapping[str, str] = field(default_factory=dict)

    def find_obstacle(self, name: str) -> str:
        """Say why `name` cannot be used on this side; empty when it can."""
        if name not in self.known:
            return f"QEMU {self.qemu_version} does not know it"
        return self.problems.get(name, "")


def require(name: str, *sides: Ability) -> None:
    """Refuse what one side cannot do.

    Raises:
        WrongState: with the side, its host, its QEMU and the reason; `CAPABILITY_MISSING`.
    """
    for side in sides:
        obstacle = side.find_obstacle(name)
        if obstacle:
            raise WrongState(
                f"{name} cannot be used: on the {side.side.value} {side.host} {obstacle}",
                reason="CAPABILITY_MISSING",
                side=side.side.value,
                host=side.host,
                qemu_version=side.qemu_version,
                capability=name,
            )


def agree(names: tuple[str, ...], *sides: Ability) -> tuple[str, ...]:
    """Return those capabilities that every side has."""
    return tuple(name for name in names if not any(side.find_obstacle(name) for side in sides))
