"""A definition travels as a record and is checked wherever it arrives."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.vm.definition import Definition
from common.errors import InvalidRequest
from tests.unit.agent.vm.samples import FULL, parse, pinned


def record(xml: str = FULL) -> dict[str, Any]:
    """Make a definition's record as another host would receive it."""
    copy: dict[str, Any] = json.loads(json.dumps(pinned(xml).to_record()))
    return copy


def test_a_definition_comes_back_equal() -> None:
    assert Definition.from_record(record()) == pinned(FULL)


@pytest.mark.parametrize("value", [None, [], "x", {}, {"version": 2}, {"version": 1}])
def test_what_is_no_definition_is_refused(value: object) -> None:
    with pytest.raises(InvalidRequest):
        Definition.from_record(value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "a\nb"),
        ("machine", "q35,accel=tcg"),
        ("emulator", "-version"),
        ("memory_kib", 0),
        ("vcpu_count", 1 << 20),
        ("cpu", {"mode": "custom", "model": "a,b", "features": [], "is_enforced": False, "is_migratable": None}),
        ("cpu", {"mode": "maximum", "model": "max", "features": [], "is_enforced": False, "is_migratable": None}),
        ("rngs", [{"source": "/etc/passwd", "rate_bytes": None, "rate_period_ms": None, "address": None}]),
        ("topology", {"socket_count": 9, "die_count": 1, "core_count": 1, "thread_count": 1}),
        ("disks", [{"target": "vda"}]),
    ],
)
def test_a_record_from_elsewhere_obeys_the_same_rules(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest):
        Definition.from_record(record() | {field: value})


@pytest.mark.parametrize("field", ["mac", "tap", "bridge"])
@pytest.mark.parametrize("value", ["x,script=/bin/sh", "", "../x", "a b"])
def test_words_of_an_interface_cannot_carry_more(field: str, value: str) -> None:
    changed = record()
    changed["interfaces"][2][field] = value

    with pytest.raises(InvalidRequest):
        Definition.from_record(changed)


def test_two_devices_cannot_share_an_address() -> None:
    changed = record()
    changed["disks"][0]["address"] = changed["disks"][1]["address"]

    with pytest.raises(InvalidRequest, match=r"PCI address 00:08\.0 is given twice"):
        Definition.from_record(changed)


def test_an_initrd_with_a_comma_would_be_two_files_and_is_refused() -> None:
    changed = record()
    changed["boot"]["initrd"] = "/boot/initrd,/etc/shadow"

    with pytest.raises(InvalidRequest, match="commas"):
        Definition.from_record(changed)


def test_files_that_have_to_be_there_are_listed_with_their_use() -> None:
    assert pinned(FULL).files() == (
        ("kernel", "/boot/vmlinuz", False),
        ("initrd", "/boot/initrd", False),
        ("disk vda", "/srv/web,1.qcow2", True),
        ("disk vdb", "/srv/data.img", False),
    )


def test_a_definition_of_the_sample_stays_what_it_is() -> None:
    assert parse(FULL).accelerator is None
