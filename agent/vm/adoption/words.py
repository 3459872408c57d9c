"""A QEMU command line taken apart: options and their arguments, and the `key=value` words inside an argument. Pure.

Source: softmmu/vl.c (qemu_init, lookup_opt), qemu-options.hx, util/qemu-option.c (get_opt_name_value).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from agent.vm.options import Properties
from common.errors import InvalidRequest
from common.foreign_json import parse_json

# Options without an argument; every other has exactly one.
_ALONE: Final = frozenset(
    {
        *("S", "s", "async-teardown", "alt-grab", "ctrl-grab", "curses", "daemonize", "enable-fips", "enable-kvm"),
        *("enable-sync-profile", "full-screen", "mem-prealloc", "no-acpi", "no-fd-bootchk", "no-hpet", "no-quit", "no-reboot"),
        *("no-shutdown", "no-user-config", "nodefaults", "nodefconfig", "nographic", "old-param", "one-insn-per-tb", "portrait"),
        *("preconfig", "sdl", "semihosting", "show-cursor", "singlestep", "snapshot", "usb", "win2k-hack", "xen-attach"),
        "xen-domid-restrict",
    }
)
_SHORT: Final = {"M": "machine", "object-add": "object"}


@dataclass(frozen=True, slots=True)
class Given:
    """One option as it was given, without its dashes; `value` is None for one that has no argument."""

    name: str
    value: str | None

    @property
    def text(self) -> str:
        """The argument; empty when there is none."""
        return self.value or ""

    def __str__(self) -> str:
        """Write it as on the command line."""
        return f"-{self.name}" if self.value is None else f"-{self.name} {self.value}"


def split_options(arguments: Sequence[str]) -> tuple[Given, ...]:
    """Take apart what follows the program's name; a word that is no option is the image of the first disk.

    Raises:
        InvalidRequest: the last option lacks its argument.
    """
    return tuple(_options(arguments))


def _options(arguments: Sequence[str]) -> Iterator[Given]:
    words = iter(arguments)
    for word in words:
        if not word.startswith("-") or word == "-":
            yield Given("hda", word)
            continue
        name = word[2:] if word.startswith("--") else word[1:]
        if name in _ALONE:
            yield Given(name, None)
            continue
        value = next(words, None)
        if value is None:
            raise InvalidRequest(f"option {word} has no argument: this is not a command line of QEMU", reason="NOT_A_QEMU")
        yield Given(_SHORT.get(name, name), value)


def parse_words(text: str, implied: str = "") -> Properties:
    """Read `key=value,...`: `,,` is a comma, a bare word is `on` (or `off` with `no` before it), the first may stand for `implied`.

    A repeated key becomes a list.
    """
    properties: Properties = {}
    for index, word in enumerate(_at_single_commas(text)):
        key, equals, value = word.partition("=")
        if not equals:
            key, value = _bare(word, implied if index == 0 else "")
        if not key:
            continue
        if key in properties:
            known = properties[key]
            properties[key] = [*(known if isinstance(known, list) else [known]), value]
        else:
            properties[key] = value
    return properties


def parse_argument(text: str, implied: str = "") -> tuple[Properties, bool]:
    """Read an argument that may be JSON; the second value says that it was.

    Raises:
        InvalidRequest: it begins like JSON and is none.
    """
    if not text.startswith("{"):
        return parse_words(text, implied), False
    try:
        found = parse_json(text)
    except ValueError as error:
        raise InvalidRequest(f"argument {text[:60]!r} is not JSON: {error}", reason="NOT_A_QEMU") from error
    if not isinstance(found, dict):
        raise InvalidRequest(f"argument {text[:60]!r} is no JSON object", reason="NOT_A_QEMU")
    return dict(found), True


def last(value: object) -> str:
    """Return what QEMU takes of a key that was given more than once."""
    if isinstance(value, list):
        value = value[-1] if value else ""
    return "" if value is None else str(value)


def _bare(word: str, implied: str) -> tuple[str, str]:
    if implied:
        return implied, word
    if word.startswith("no") and len(word) > len("no"):
        return word[len("no") :], "off"
    return word, "on"


def _at_single_commas(text: str) -> Iterator[str]:
    """Split at commas and undouble the doubled ones; of three the first two are the comma."""
    word, index = "", 0
    while index < len(text):
        if text[index] != ",":
            word += text[index]
        elif text[index + 1 : index + 2] == ",":
            word += ","
            index += 1
        else:
            yield word
            word = ""
        index += 1
    if word:
        yield word
