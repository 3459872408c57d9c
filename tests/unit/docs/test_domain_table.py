"""docs/domain-xml.md is what the readers do."""

from __future__ import annotations

from tests.tools import domain_table


def test_the_page_is_up_to_date() -> None:
    assert domain_table.TARGET.read_text(encoding="utf-8") == domain_table.text(), "run `make docs`"
