"""Definitions that are no good: each with a clear message, and nothing stored."""

from __future__ import annotations

import pytest

from tests.e2e.guest import Plan, domain
from tests.e2e.lab import Lab, refused

BOMB = b"""<!DOCTYPE domain [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<domain type="qemu"><name>&b;</name></domain>"""


@pytest.mark.parametrize(
    ("xml", "reason", "word"),
    [
        (b"", "XML_BROKEN", "domain XML"),
        (b"<domain type='qemu'><name>web</name>", "XML_BROKEN", "line 1"),
        (b"\x00\xff\xfe", "XML_BROKEN", "domain XML"),
        (b"<domain type='qemu'>" + b" " * (1 << 20) + b"</domain>", "XML_TOO_BIG", str(1 << 20)),
        (b"<a>" * 100_000, "XML_BROKEN", "domain XML"),
        (BOMB, "XML_HAS_DOCTYPE", "entities"),
        (BOMB.decode().encode("utf-16"), "XML_BROKEN", "domain XML"),
        (b"<network/>", "ELEMENT_NOT_CARRIED", "network"),
    ],
    ids=["empty", "broken", "binary", "huge", "deep", "bomb", "bomb-in-utf-16", "no-domain"],
)
async def test_what_is_no_domain_is_refused(xml, reason, word, lab: Lab):
    with refused(reason, word):
        await lab.define("host-a", xml)

    await lab.wait_empty("host-a")


async def test_an_element_that_is_not_carried_is_named_with_its_line(lab: Lab):
    xml = domain(Plan(inside="<shmem name='s'/>"), lab.directory)
    line = next(number for number, text in enumerate(xml.decode().splitlines(), start=1) if "shmem" in text)

    with refused("ELEMENT_NOT_CARRIED", "shmem", f":{line}:"):
        await lab.define("host-a", xml)

    await lab.wait_empty("host-a")


async def test_an_emulator_that_is_not_allowed_is_refused(lab: Lab):
    with refused("EMULATOR_NOT_ALLOWED", "/usr/bin/env"):
        await lab.define("host-a", domain(Plan(emulator="/usr/bin/env"), lab.directory))

    await lab.wait_empty("host-a")


async def test_a_machine_type_that_is_unknown_is_refused(lab: Lab):
    with refused("MACHINE_UNKNOWN", "pc-q35-99.0"):
        await lab.define("host-a", domain(Plan(machine="pc-q35-99.0"), lab.directory))

    await lab.wait_empty("host-a")
