"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from common.errors import InvalidRequest
from coordinator.cli import units
from coordinator.cli.screen import Format

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cyclopts import Token

    from coordinator.cli.units import Range

DEFAULT_COORDINATOR = "127.0.0.1:7700"
_MAX_DIGITS = 9
CONNECTION = Group("Connection", sort_key=90)


class Misused(InvalidRequest):
    """Options that contradict each other."""

    default_reason = "USAGE"


@Parameter(name="*", group=CONNECTION)
@dataclass(frozen=True, slots=True)
class Settings:
    """Whom to talk to, and as whom."""

    coordinator: Annotated[
        str,
        Parameter(
            name="--coordinator",
            metavar="ADDRESS",
            env_var="FERRY_COORDINATOR",
            help="The coordinator's host:port.",
        ),
    ] = DEFAULT_COORDINATOR
    pki: Annotated[
        str | None,
        Parameter(
            name="--pki",
            metavar="DIR",
            env_var="FERRY_PKI",
            help="Directory with ca.pem, cert.pem and key.pem of an operator; 'none' for plain text, to loopback only. "
            "Without it: ~/.config/ferry/pki if that exists, else plain text.",
        ),
    ] = None


def bandwidth_of(_: object, tokens: Sequence[Token]) -> int:
    """Convert an option to bytes per second."""
    return units.parse_bandwidth(tokens[0].value)


def whole_number(_: object, tokens: Sequence[Token]) -> int:
    """Convert an option to a whole number; what is none is not rounded."""
    text = tokens[0].value
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS):
        raise ValueError(f"{text[:20]!r} is not a whole number")
    return int(text)


def duration_of(allowed: Range) -> Callable[[object, Sequence[Token]], Fraction]:
    """Make a converter of an option to seconds."""

    def convert(_: object, tokens: Sequence[Token]) -> Fraction:
        return units.parse_duration(tokens[0].value, allowed)

    return convert


def one_value(
    metavar: str,
    converter: Callable[[object, Sequence[Token]], object],
    text: str,
    *,
    name: str | None = None,
    show_default: bool | str | None = None,
) -> Parameter:
    """Describe an option that takes one word, and what makes a value of it; `text` is its help."""
    return Parameter(
        name=name, metavar=metavar, show_default=show_default, converter=converter, n_tokens=1, accepts_keys=False, help=text
    )


# cyclopts reads these at run time; what is converted is not what is typed.
Switch = Annotated[bool, Parameter(negative="", show_default=False)]
Output = Annotated[Format, Parameter(name=("--output", "-o"), metavar="FORMAT", help="How data is written to stdout.")]
Host = Annotated[
    str | None,
    Parameter(name="--host", metavar="HOST", help="The host to ask, by name, or its agent's address host:port."),
]
Bandwidth = Annotated[
    int | None,
    one_value("RATE", bandwidth_of, "Bound of the transfer, as 100MiB/s or 1.5GB/s; 0 for none.", name="--bandwidth"),
]
MaxDowntime = Annotated[
    Fraction | None,
    one_value(
        "TIME", duration_of(units.DOWNTIME), "Longest time that the guest may stand still, 1ms to 2000s.", name="--max-downtime"
    ),
]
Patience = Annotated[
    Fraction,
    one_value(
        "TIME",
        duration_of(units.PATIENCE),
        "How long to go on watching while the guest waits for a silent host, or the coordinator is silent.",
        name="--patience",
        show_default="60s",
    ),
]
Vm = Annotated[str, Parameter(help="Name or UUID.")]
MigrationId = Annotated[str, Parameter(help="Its id, or a unique beginning of it.")]
DEFAULT_PATIENCE_S = Fraction(60)
DEFAULT_SETTINGS = Settings()
