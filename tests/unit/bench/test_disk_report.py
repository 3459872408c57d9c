"""The section of the disks in the page of the benchmark."""

from __future__ import annotations

import pytest

from tests.bench.disk_report import with_section

NEW = "## Disks\n\nnew figures\n"


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        pytest.param(
            "# Benchmarks\n\n## Figures\n\n### Plans\n", "# Benchmarks\n\n## Figures\n\n### Plans\n\n" + NEW, id="no section"
        ),
        pytest.param("# Benchmarks\n\n## Disks\n\nold\n\n### More\n", "# Benchmarks\n\n" + NEW, id="the last section"),
        pytest.param("# B\n\n## Disks\n\nold\n\n## After\n\nkept\n", "# B\n\n" + NEW + "\n## After\n\nkept\n", id="amid others"),
    ],
)
def test_only_the_section_of_the_disks_changes(page, expected):
    assert with_section(page, NEW) == expected


def test_writing_the_section_twice_is_writing_it_once():
    page = with_section("# Benchmarks\n\ntext\n", NEW)

    assert with_section(page, NEW) == page
