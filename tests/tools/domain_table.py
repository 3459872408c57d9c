"""Write docs/domain-xml.md: what becomes of each element of libvirt's domain XML, found out by reading a sample of it."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from agent.vm.domain.parse import parse_domain
from common.errors import InvalidRequest
from tests.tools.domain_samples import CARD, NO_DEVICES, SECTIONS, Sample

TARGET = Path(__file__).parents[2] / "docs" / "domain-xml.md"
_HEAD = """\
# libvirt domain XML

Generated from the samples in tests/tools/domain_samples.py by `make docs`, by reading each; do not edit.

- **carried**: becomes part of QEMU's command line.
- **irrelevant**: accepted; it confirms what is so anyway, or only the host's management can tell.
- **refused**: an error names the element with its path and line, and nothing is stored.

What is in no row is refused too: an element or attribute that no reader asks for is an error. `ferry vm argv FILE.xml` prints the
command line that a definition becomes.
"""
_UUID = UUID(int=1)


def text() -> str:
    """Return the whole page."""
    parts = [_HEAD]
    for title, samples in SECTIONS.items():
        rows = [f"| {sample.name} | {outcome(sample)} |" for sample in samples]
        parts.append("\n".join([f"## {title}", "", "| element | |", "| --- | --- |", *rows, ""]))
    return "\n".join(parts)


def outcome(sample: Sample) -> str:
    """Say what becomes of a sample."""
    try:
        with_it = _read(sample.place, sample.xml)
    except InvalidRequest as error:
        return "refused" if "line" in error.facts else f"broken sample: {error.text}"
    return "irrelevant" if with_it == _read(sample.place, sample.base) else "carried"


def _read(place: str, xml: str) -> object:
    parts = dict.fromkeys(("domain", "os", "devices"), "") | {place: xml}
    base = NO_DEVICES
    for tag in ("controller type='usb'", "memballoon"):
        if f"<{tag}" in xml:
            base = "".join(f"<{piece}" for piece in base.split("<") if piece and not piece.startswith(tag))
    os = "" if "<os" in parts["domain"] else f"<os><type machine='q35'>hvm</type>{parts['os']}</os>"
    domain = (
        f"<domain type='qemu'><name>n</name><memory>16384</memory>{parts['domain']}{os}"
        f"<devices>{base}{CARD.format(inside='')}{parts['devices']}</devices></domain>"
    )
    return parse_domain(domain.encode(), "sample", new_uuid=lambda: _UUID)


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
