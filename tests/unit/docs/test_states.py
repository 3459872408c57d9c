"""The generated pages."""

from __future__ import annotations

from tests.tools import states


def test_the_page_of_states_is_what_the_machines_say():
    assert states.TARGET.read_text(encoding="utf-8") == states.text(), "run `make docs`"
