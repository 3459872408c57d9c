"""What a guardian is told of the move that it guards, and how it travels: one message a packet, from the agent alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from common.codec import decode, encode

BEAT: Final = b"beat"
MESSAGE_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Charge:
    """One half of a move, as far as its guardian has to know it.

    Attributes:
        qmp_path, pid, start_time_ticks: its QEMU.
        max_downtime_s: how long the user allows the guest to stand still.
        may_stand_still: whether its user wants it stopped anyway.
        is_under_way: whether there is anything to guard.
        peer_address: `host:port` of the other host's agent.
        certificates: authority, certificate and key of this host's agent; empty for plain text.
        note_path: where it is written down that the guest was given away, or may run here.
        token: at the source, what Resume needs, hexadecimal.
        keep_paused: at the source, whether the guest is not to run at the destination either.
        token_sha256: at the destination, its SHA-256, hexadecimal.
        has_exports: at the destination, whether QEMU exports disks, which ends before the guest runs.
    """

    migration_id: str
    qmp_path: str
    pid: int
    start_time_ticks: int
    max_downtime_s: float
    may_stand_still: bool
    is_under_way: bool
    peer_address: str
    certificates: tuple[str, ...]
    note_path: str
    token: str = ""
    keep_paused: bool = False
    token_sha256: str = ""
    has_exports: bool = False

    @property
    def is_incoming(self) -> bool:
        """Whether it is the destination's half."""
        return bool(self.token_sha256)

    def to_message(self) -> bytes:
        """Return what `read_charge` reads."""
        return json.dumps(encode(self)).encode()


def read_charge(message: bytes) -> Charge:
    """Read a charge back; it comes from the agent that started us, so of our own version."""
    return decode(Charge, json.loads(message))
