"""`make demo`: a Linux guest moves between two hosts on this machine, and back, and its counter goes on.

    python -m deploy.demo          run it; KEEP=1 in the environment leaves it up
    python -m deploy.demo stop     end all that KEEP=1 has left up

Needs nothing but the repository after `make setup`. Everything lies in one temporary directory and nothing is left
running, also after a failure or Ctrl-C; after a failure the directory stays, because the logs are in it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from deploy.demo.console import GuestSilent
from deploy.demo.script import CommandFailed, Demo
from deploy.lab.fleet import REPOSITORY
from deploy.lab.processes import ProcessFailed, end_processes_of

KEPT = REPOSITORY / ".cache" / "demo"
STOP = "stop"


def main() -> int:
    """Run or end the demo; give the exit code."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # stdout is a text stream here
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    match sys.argv[1:]:
        case []:
            return run(is_kept=os.environ.get("KEEP", "") not in ("", "0"))
        case ["stop"]:
            return stop()
        case _:
            print(__doc__, file=sys.stderr)
            return 2


def run(*, is_kept: bool) -> int:
    """Run the demo in a directory of its own."""
    directory = Path(tempfile.mkdtemp(prefix="ferry-", dir="/tmp"))  # socket paths have to be short, so not TMPDIR
    try:
        with Demo(directory) as demo:
            demo.play()
            if is_kept:
                demo.keep()
                KEPT.parent.mkdir(exist_ok=True)
                with KEPT.open("a") as kept:
                    print(directory, file=kept)
                return 0
    except (CommandFailed, ProcessFailed, GuestSilent, AssertionError, FileNotFoundError) as error:
        print(f"\ndemo failed: {error}\nthe logs are in {directory}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, SystemExit):
        print("\ninterrupted; everything was ended", file=sys.stderr)
        shutil.rmtree(directory, ignore_errors=True)
        return 130
    shutil.rmtree(directory)
    return 0


def stop() -> int:
    """End every demo that was left up."""
    if not KEPT.exists():
        print("no demo was left up", file=sys.stderr)
        return 1
    for directory in map(Path, KEPT.read_text().split()):
        count = end_processes_of(directory)
        shutil.rmtree(directory, ignore_errors=True)
        print(f"{count} processes ended, {directory} removed")
    KEPT.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
