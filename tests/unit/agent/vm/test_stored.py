"""What a host keeps of a VM, on its way to another host."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.vm.stored import Stored
from agent.vm.wishes import Wishes
from common.errors import InvalidRequest
from tests.unit.agent.vm.samples import domain, parse

WEB = parse(domain())


@pytest.mark.parametrize("stored", [Stored(), Stored(autostart=True, cpu_shares=512), Stored(WEB)])
def test_it_is_the_same_on_the_other_host(stored):
    assert Stored.from_bytes(stored.to_bytes()) == stored


def test_of_a_transient_vm_there_is_none():
    assert Stored.from_bytes(b"") is None


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"definition": null}', b'{"definition": 1, "autostart": true, "cpu_shares": 1}']
)
def test_what_is_none_is_refused(content):
    with pytest.raises(InvalidRequest):
        Stored.from_bytes(content)


def test_a_new_name_is_that_of_the_stored_definition_too():
    assert Stored(WEB).renamed("shop") == Stored(replace(WEB, name="shop"))
    assert Stored().renamed("shop") == Stored()


def test_wishes_from_before_guests_could_leave_their_definition_are_read():
    assert Wishes.from_record({"autostart": True, "tunables": {"cpu_shares": None}}) == Wishes(autostart=True)
