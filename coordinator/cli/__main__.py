"""`python -m coordinator.cli`: the `ferry` command where it is not installed."""

from __future__ import annotations

from coordinator.cli.app import main

main()
