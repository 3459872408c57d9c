"""Linux capabilities of the agent. Source: capabilities(7), prctl(2)."""

from __future__ import annotations

import ctypes
from typing import Final

_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4


def keep_capabilities_to_ourselves() -> None:
    """Clear the ambient set, so that a QEMU started by this agent does not inherit what the agent was given.

    The agent itself keeps its capabilities. On a kernel without ambient capabilities there is nothing to clear.
    """
    ctypes.CDLL(None).prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
