"""`ferry vm argv`: the command line that a definition becomes, worked out here, without an agent."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from typing import Annotated

from cyclopts import Parameter

from common.errors import Bug, InvalidRequest
from coordinator.cli.definition_file import read_definition
from coordinator.cli.exits import ExitCode
from coordinator.cli.options import Output
from coordinator.cli.screen import Format, Screen

TIMEOUT_S = 120.0


async def argv(
    file: Annotated[str, Parameter(help="A libvirt domain XML; '-' reads stdin.")],
    /,
    *,
    qemu: Annotated[str | None, Parameter(help="The emulator; default: the definition's, or the host's own.")] = None,
    output: Output = Format.TABLE,
) -> ExitCode:
    """Print the QEMU command line that a definition becomes on this host; no agent is asked.

    Exits with 3 when an element of it is refused.
    """
    words = [sys.executable, "-m", "agent.offline", "--origin", "stdin" if file == "-" else file]
    if qemu is not None:
        words += ["--qemu", qemu]
    # The builder is the agent's own; only a process between them keeps command and agent apart.
    ended = subprocess.run(words, input=read_definition(file), capture_output=True, timeout=TIMEOUT_S, check=False)  # noqa: S603, ASYNC221
    if ended.returncode != 0:
        raise Bug(f"the builder ended with {ended.returncode}: {ended.stderr.decode(errors='replace').strip()[-500:]}")
    found = json.loads(ended.stdout)
    screen = Screen()
    if "error" in found:
        error = found["error"]
        if not error["is_element"]:
            raise InvalidRequest(error["text"], reason=error["reason"])
        screen.fail(f"{error['text']} [{error['reason']}]")
        return ExitCode.NOT_CARRIED
    for note in found["notes"]:
        screen.note(note)
    if output is Format.TABLE:
        sys.stdout.write(f"{_in_lines(found['argv'])}\n")
    else:
        screen.show({"argv": found["argv"]}, lambda: "", output)
    return ExitCode.DONE


def _in_lines(words: list[str]) -> str:
    """Write it for a shell, an option a line."""
    lines = [words[0]]
    takes_value = False
    for word in words[1:]:
        if takes_value or not word.startswith("-"):
            lines[-1] += f" {shlex.quote(word)}"
            takes_value = False
        else:
            lines.append(f"  {word}")
            takes_value = word == "-append"  # the only value that may begin with a dash
    return " \\\n".join(lines)
