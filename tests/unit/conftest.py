"""The unit tests' settings: the same examples in every run, whatever the machine's load."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("ferry", deadline=None, derandomize=True)
settings.load_profile("ferry")
