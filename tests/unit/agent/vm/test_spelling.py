"""A definition is written in the words of the QEMU at hand, and back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.qemu.machine import QemuVersion
from agent.vm.options import keyval, of_json, text
from agent.vm.spelling import RENAMED, spell
from tests.unit.agent.vm.samples import domain, pinned

OLD = (
    keyval("chardev", {"backend": "socket", "id": "c", "path": "/a,reconnect=5", "reconnect": "5"}),
    of_json("netdev", {"type": "stream", "id": "n", "reconnect": 2}),
    text("serial", "tcp:192.0.2.1:4000,reconnect=3,nodelay=on"),
    of_json("device", {"driver": "x", "reconnect": 1}),
)
NEW = (
    keyval("chardev", {"backend": "socket", "id": "c", "path": "/a,reconnect=5", "reconnect-ms": 5000}),
    of_json("netdev", {"type": "stream", "id": "n", "reconnect-ms": 2000}),
    text("serial", "tcp:192.0.2.1:4000,reconnect-ms=3000,nodelay=on"),
    of_json("device", {"driver": "x", "reconnect": 1}),
)


def at(major: int, minor: int) -> QemuVersion:
    return QemuVersion(major, minor, 0, "")


@pytest.mark.parametrize(("version", "wanted"), [((7, 2), OLD), ((9, 1), OLD), ((9, 2), NEW), ((10, 0), NEW), ((11, 1), NEW)])
@pytest.mark.parametrize("stored", [OLD, NEW], ids=["old", "new"])
def test_reconnect_is_what_each_qemu_takes(stored, version, wanted):
    spelt = spell(replace(pinned(domain()), options=stored), at(*version))

    assert [" ".join(option.write()) for option in spelt.options] == [" ".join(one.write()) for one in wanted]


def test_part_of_a_second_does_not_turn_it_off():
    stored = replace(pinned(domain()), options=(keyval("chardev", {"backend": "socket", "id": "c", "reconnect-ms": "1"}),))

    assert spell(stored, at(7, 2)).options[0].get("reconnect") in (1, "1")


def test_what_is_known_to_both_is_left_alone():
    stored = pinned(domain())

    assert spell(stored, at(11, 1)) == spell(stored, at(7, 2)) == stored


@pytest.mark.parametrize("renamed", RENAMED, ids=lambda one: one.old)
def test_the_new_word_is_known_before_the_old_one_is_gone(renamed):
    assert renamed.since < renamed.until
