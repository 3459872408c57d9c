"""Leaving at once. In place before all other imports of `ferry`, so it imports what takes no time: not even `typing`."""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130
"""The exit code after Ctrl-C."""


def leave_at_ctrl_c() -> None:
    """Let Ctrl-C end the process at once, unless it is ignored, as in a shell's background jobs."""
    if not is_ctrl_c_ignored():
        signal.signal(signal.SIGINT, leave)


def is_ctrl_c_ignored() -> bool:
    """Say whether whoever started this process wants Ctrl-C to be ignored."""
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def leave(*_: object) -> None:
    """End the process without tidying up: there is nothing to tidy, or it does not come to it."""
    os._exit(INTERRUPTED)
