"""The `ferry` command. Its imports take a while, in which Ctrl-C shall not end in a traceback."""

from __future__ import annotations

from coordinator.cli.leaving import leave_at_ctrl_c


def main() -> None:
    """Run one command line and exit."""
    leave_at_ctrl_c()
    from coordinator.cli.app import main as run  # noqa: PLC0415 -- see the module's docstring

    run()


if __name__ == "__main__":
    main()
