"""The `ferry` command: its tree of commands, and how every ending becomes words and an exit code.

A group of commands is imported when one of it is used: half of what `ferry vm ls` takes would be imports of others.
"""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from typing import TYPE_CHECKING

from cyclopts import App, CycloptsError, UnusedCliTokensError

from common.errors import Bug, FerryError
from coordinator.cli.ctrl_c import ctrl_c_ends
from coordinator.cli.exits import ExitCode
from coordinator.cli.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Sequence

DISTRIBUTION = "vmferry"
DEBUG_VARIABLE = "FERRY_DEBUG"
_GLOBAL_OPTIONS = ("--coordinator", "--pki")


def version() -> str:
    """Give the version of this command."""
    from importlib import metadata  # noqa: PLC0415 -- see the module's docstring

    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


app = App(
    name="ferry",
    help="Move running QEMU virtual machines between hosts.",
    help_format="plaintext",
    version=version,
    result_action="return_value",
)
app.command("coordinator.cli.migrate:migrate", help="Move a running VM to another host.")
app.command("coordinator.cli.plan:plan", help="Say what stands in the way of a move, and what it is going to be.")
app.command(
    "coordinator.cli.migrations:app", name="migration", help="Look at migrations, past and running, and steer those that run."
)
app.command("coordinator.cli.vms:app", name="vm", help="Define, start, stop and list VMs; the hosts' agents are asked directly.")
app.command("coordinator.cli.block:app", name="block", help="Copy, pull, commit and snapshot disks of running VMs.")
app.command("coordinator.cli.doctor:doctor", help="Look for what is left over on the hosts and owned by no running work.")
app.command("coordinator.cli.hosts:app", name="host", help="Look at the hosts of the fleet.")
app.command("coordinator.cli.pki:app", name="pki", help="Make the certificates of a fleet.")


@app.command(name="version")
def show_version() -> ExitCode:
    """Show the version of this command."""
    sys.stdout.write(f"ferry {version()}\n")
    return ExitCode.DONE


def main() -> None:
    """Run one command line and exit."""
    # gRPC's core writes to stderr by itself; what matters of it comes as an error.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        code = asyncio.run(_run_until_ctrl_c(sys.argv[1:]))
        sys.stdout.flush()
    except KeyboardInterrupt:  # the answer to a question
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has left
        code = ExitCode.REFUSED
    # Python's own end takes a while with gRPC in it, all without its handlers: Ctrl-C would replace the code of what is done.
    os._exit(code)


async def _run_until_ctrl_c(arguments: Sequence[str]) -> ExitCode:
    with ctrl_c_ends() as ending:
        try:
            async with ending:
                return await run(arguments)
        except TimeoutError:
            return ExitCode.INTERRUPTED


async def run(arguments: Sequence[str]) -> ExitCode:
    """Run one command line; whatever goes wrong is told on stderr in a line or two."""
    try:
        outcome = await app.run_async(_options_last(arguments), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        Screen().fail(f"{_words_of(error)}\ntry: ferry {_command_words(arguments)}--help")
        return ExitCode.USAGE
    except FerryError as error:
        return _tell(error)
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 -- a user never sees a traceback unless asked for
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        Screen().fail(f"a bug of ferry: {type(error).__name__}: {error}\n{DEBUG_VARIABLE}=1 shows where")
        return ExitCode.UNKNOWN
    return outcome if isinstance(outcome, ExitCode) else ExitCode.DONE


def _tell(error: FerryError) -> ExitCode:
    from coordinator.cli.link import Undecided  # noqa: PLC0415 -- see the module's docstring
    from coordinator.cli.options import Misused  # noqa: PLC0415

    screen = Screen()
    screen.fail(error.text if isinstance(error, Misused) else f"{error.text} [{error.reason}]")
    if {"path", "line"} <= error.facts.keys():  # of an element in domain XML
        return ExitCode.NOT_CARRIED
    match error:
        case Misused():
            return ExitCode.USAGE
        case Undecided():
            screen.note("it may have been done: look with ferry vm ls or ferry migration ls")
            return ExitCode.UNKNOWN
        case Bug():
            return ExitCode.UNKNOWN
        case _:
            return ExitCode.REFUSED


def _options_last(arguments: Sequence[str]) -> list[str]:
    """Let `ferry --coordinator X host ls` mean what it says: such options may stand before the command too."""
    front = 0
    while front < len(arguments) and arguments[front].split("=", 1)[0] in _GLOBAL_OPTIONS:
        front += 1 if "=" in arguments[front] else 2
    return [*arguments[front:], *arguments[:front]]


def _command_words(arguments: Sequence[str]) -> str:
    """Name the command that help is to be had on."""
    words: list[str] = []
    for argument in _options_last(arguments):
        if argument.startswith("-") or len(words) == 2 or (not words and argument not in app):  # noqa: PLR2004 -- levels
            break
        if words and (words[0] == "migrate" or argument not in app[words[0]]):
            break
        words.append(argument)
    return "".join(f"{word} " for word in words)


def _words_of(error: CycloptsError) -> str:
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"unexpected argument {error.unused_tokens[0]!r}"
    return " ".join(str(error).split())
