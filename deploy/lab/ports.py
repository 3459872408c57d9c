"""Blocks of TCP ports of the loopback, one a fleet.

The ports lie below those that the kernel gives to outgoing connections, so that a server that is started again finds
its port free.
"""

from __future__ import annotations

import errno
import os
import random
import socket
from dataclasses import dataclass
from typing import Self

BLOCK_SIZE = 100
_FIRST = 12000
_LAST = 31900
_SERVER_COUNT = 8
_POOL_START = 10
_POOL_SIZE = 40


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports for incoming migrations, both ends included."""

    first: int
    last: int


class PortBlock:
    """A block that no other fleet takes while this object lives, and a little longer while its servers listen."""

    def __init__(self, base: int, claim: socket.socket) -> None:
        self._base = base
        self._claim = claim

    @classmethod
    def claim(cls) -> Self:
        """Find a free block; the caller closes it.

        Raises:
            RuntimeError: all are taken.
        """
        bases = list(range(_FIRST, _LAST, BLOCK_SIZE))
        random.Random(os.getpid()).shuffle(bases)  # noqa: S311 -- fleets that start together shall not meet
        for base in bases:
            claim = _listen(base + BLOCK_SIZE - 1)
            if claim is None:
                continue
            if all(_is_free(base + offset) for offset in range(_SERVER_COUNT)):
                return cls(base, claim)
            claim.close()
        raise RuntimeError(f"no free block of {BLOCK_SIZE} ports between {_FIRST} and {_LAST}")

    def server(self, index: int) -> int:
        """Give the port of a server, 0 to 7."""
        return self._base + index

    def pool(self, index: int) -> PortRange:
        """Give the ports for migrations to host number `index`, 0 or 1."""
        first = self._base + _POOL_START + index * _POOL_SIZE
        return PortRange(first, first + _POOL_SIZE - 1)

    def close(self) -> None:
        """Let others have the block."""
        self._claim.close()


def _is_free(port: int) -> bool:
    probe = _listen(port)
    if probe is not None:
        probe.close()
    return probe is not None


def _listen(port: int) -> socket.socket | None:
    """Take a port; None if somebody has it."""
    taken = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        taken.bind(("127.0.0.1", port))
        taken.listen(1)
    except OSError as error:
        taken.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            return None
        raise
    return taken
