"""Reads the package sources of this machine and derives others from them; pure.

A Debian machine names its mirror and keyring in one-line .list files or in deb822 .sources files. What is derived
keeps both, so that no host name stands in this repository and a mirror near the machine stays in use.

Source: sources.list(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

_ONE_LINE = re.compile(r"^deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>\S.*)$")
_OPTION_FIELDS = {
    "arch": "Architectures",
    "signed-by": "Signed-By",
    "trusted": "Trusted",
    "check-valid-until": "Check-Valid-Until",
}
_NAMED_FIELDS = frozenset({"types", "uris", "suites", "components", "enabled"})


@dataclass(frozen=True, slots=True)
class AptSource:
    """One place that binary packages come from."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    """deb822 fields kept as they stand, a key written out in `Signed-By` included."""

    def to_stanza(self) -> str:
        """Write the source in deb822 form."""
        fields = {
            "Types": "deb",
            "URIs": " ".join(self.uris),
            "Suites": " ".join(self.suites),
            "Components": " ".join(self.components),
            **self.options,
        }
        return "".join(f"{name}: {value}\n" for name, value in fields.items())


def parse_list(text: str) -> tuple[AptSource, ...]:
    """Parse one-line sources; lines of another kind, `deb-src` above all, are passed over."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return tuple(_from_line(match) for match in map(_ONE_LINE.match, lines) if match)


def parse_deb822(text: str) -> tuple[AptSource, ...]:
    """Parse deb822 stanzas; those that are disabled or hold no binary packages are passed over."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    stanzas = (_fields(stanza) for stanza in re.split(r"\n\s*\n", lines))
    return tuple(_from_fields(fields) for fields in stanzas if _is_binary(fields))


def with_backports(sources: Iterable[AptSource], codename: str) -> tuple[AptSource, ...]:
    """Return the sources of the release `codename`, and its backports from where the release itself comes from.

    Returns:
        Nothing when no source has the release.
    """
    release: list[AptSource] = []
    backports: list[AptSource] = []
    known = {codename, f"{codename}-updates", f"{codename}-security"}
    for source in sources:
        if "main" not in source.components:
            continue
        if suites := tuple(suite for suite in source.suites if suite in known):
            release.append(replace(source, suites=suites))
        if codename in source.suites:
            backports.append(replace(source, suites=(f"{codename}-backports",)))
    return (*release, *backports) if backports else ()


def of_release(sources: Iterable[AptSource], codename: str, other: str) -> tuple[AptSource, ...]:
    """Return sources of the release `codename` as those of another release, from the same mirrors."""
    return tuple(replace(source, suites=tuple(suite.replace(codename, other, 1) for suite in source.suites)) for source in sources)


def _from_line(match: re.Match[str]) -> AptSource:
    options = (option.partition("=") for option in (match["options"] or "").split())
    return AptSource(
        uris=(match["uri"],),
        suites=(match["suite"],),
        components=tuple(match["components"].split()),
        options={_OPTION_FIELDS[name]: value.replace(",", " ") for name, _, value in options if name in _OPTION_FIELDS},
    )


def _fields(stanza: str) -> dict[str, str]:
    """Return the fields by their names as written; a value keeps its continuation lines."""
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line[:1].isspace():
            fields[name] = f"{fields.get(name, '')}\n{line}"
        elif line:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
    return fields


def _is_binary(fields: Mapping[str, str]) -> bool:
    lower = {name.lower(): value for name, value in fields.items()}
    return "deb" in lower.get("types", "").split() and lower.get("enabled", "yes").lower() not in {"no", "false", "0"}


def _from_fields(fields: Mapping[str, str]) -> AptSource:
    lower = {name.lower(): value for name, value in fields.items()}
    return AptSource(
        uris=tuple(lower.get("uris", "").split()),
        suites=tuple(lower.get("suites", "").split()),
        components=tuple(lower.get("components", "").split()),
        options={name: value for name, value in fields.items() if name.lower() not in _NAMED_FIELDS},
    )
