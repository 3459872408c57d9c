"""What a set-up step says when it cannot do its work."""

from __future__ import annotations


class SetupFailed(Exception):
    """A step of the set-up failed; the text is all that a person needs to see."""
