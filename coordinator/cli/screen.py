"""Where the command line writes: data to stdout, everything else to stderr.

Text of others (names, errors) is never taken for markup, and control characters in it never reach the terminal.
Colours follow rich's rules: none with NO_COLOR, none when the stream is not a terminal.
"""

from __future__ import annotations

import enum
import json
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rich.console import RenderableType

# Nothing is cut or wrapped where a program or a file reads.
_PIPE_WIDTH = 1000


class Format(enum.Enum):
    """How data is written to stdout."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class Screen:
    """The two streams of one command."""

    def __init__(self) -> None:
        self.data = _console(is_stderr=False)
        self.notes = _console(is_stderr=True)

    def show(self, plain: object, table: Callable[[], RenderableType], chosen: Format) -> None:
        """Write data: `plain` as JSON or YAML, or what `table` makes of it for people."""
        match chosen:
            case Format.TABLE:
                self._print(table())
            case Format.JSON:
                sys.stdout.write(json.dumps(plain, indent=2, ensure_ascii=False) + "\n")
            case Format.YAML:
                sys.stdout.write(_to_yaml(plain))
        sys.stdout.flush()

    def _print(self, renderable: RenderableType) -> None:
        """Print a table; what is not a terminal gets no blanks at the ends of lines."""
        if self.data.is_terminal:
            self.data.print(renderable)
            return
        with self.data.capture() as capture:
            self.data.print(renderable)
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))

    def line(self, text: str) -> None:
        """Write one line of data that goes on."""
        self.data.print(Text(printable(text)), soft_wrap=True)
        sys.stdout.flush()

    def show_line(self, plain: object, chosen: Format) -> None:
        """Write one of many: a JSON document on one line, or a YAML document."""
        text = json.dumps(plain, ensure_ascii=False) + "\n"
        if chosen is Format.YAML:
            text = "---\n" + _to_yaml(plain)
        sys.stdout.write(text)
        sys.stdout.flush()

    def note(self, text: str, style: str = "") -> None:
        """Tell something that is not data."""
        self.notes.print(Text(printable(text), style=style), soft_wrap=True)

    def ask(self, question: str) -> None:
        """Write a question; the answer is typed behind it."""
        self.notes.print(Text(printable(question)), end="", soft_wrap=True)

    def warn(self, text: str) -> None:
        """Tell something odd by which nothing was lost."""
        self._tell("warning: ", "yellow", text)

    def fail(self, text: str) -> None:
        """Tell why the command failed."""
        self._tell("error: ", "bold red", text)

    def _tell(self, label: str, style: str, text: str) -> None:
        self.notes.print(Text.assemble((label, style), printable(text)), soft_wrap=True)


def _console(*, is_stderr: bool) -> Console:
    """Make a console for the stream that `sys` has now."""
    stream = sys.stderr if is_stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def printable(text: str) -> str:
    """Replace what could move the cursor or change the terminal; line ends stay."""
    return "".join(character if character.isprintable() or character == "\n" else "�" for character in text)


def columns(headers: Sequence[str], rows: Iterable[Sequence[str | Text]], *, right: frozenset[str] = frozenset()) -> Table:
    """Lay rows out under headers, without lines; the columns named in `right` are numbers."""
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, justify="right" if header in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row))
    return table


def pairs(rows: Iterable[tuple[str, str | Text]]) -> Table:
    """Lay names and values out, one a line."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value if isinstance(value, Text) else Text(printable(value)))
    return table


def _to_yaml(plain: object) -> str:
    import yaml  # noqa: PLC0415 -- few ask for it, and all would wait for it

    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return text
