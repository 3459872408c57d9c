"""The host's end of a guest agent's channel, where nobody else is at it."""

from __future__ import annotations

from typing import Final

from agent.qemu.commands import Qemu
from agent.qemu.guest_agent import CHANNEL, AgentAbsent, AgentGone
from agent.vm.definition import Definition

_FREE: Final = "disconnected:unix:"


def has_channel(definition: Definition) -> bool:
    """Say whether a guest has a channel for an agent."""
    return bool(_find_chardev(definition))


async def find_socket(qemu: Qemu, definition: Definition) -> str:
    """Return the path of the channel's UNIX socket.

    Raises:
        AgentAbsent: the guest has no channel, or has not opened its end.
        AgentGone: another client is at it, or it is no UNIX socket.
        FerryError: QEMU does not answer.
    """
    label = _find_chardev(definition)
    chardev = (await qemu.query_chardevs()).get(label) if label else None
    if chardev is None or not chardev.is_frontend_open:
        raise AgentAbsent("no guest agent listens")
    if not chardev.filename.startswith(_FREE):
        raise AgentGone(f"channel {CHANNEL} has another client, or is no UNIX socket")
    return chardev.filename.removeprefix(_FREE).partition(",")[0]


def _find_chardev(definition: Definition) -> str:
    return next((device.get("chardev") for device in definition.find("device") if device.get("name") == CHANNEL), "")
