"""Commands about a migration that is in trouble are written in one place alone, and those that pages show are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from coordinator.cli.migrations import app

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(r"ferry migration ([a-z]+)")
# What changes a side of a migration: each is computed from the state of that side.
OF_TROUBLE = frozenset({"fence", "release", "recover", "cancel"})
ELSEWHERE = {"coordinator/workflows/texts.py": frozenset({"release"})}  # by the coordinator, where one host does not answer
PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_no_other_text_makes_up_a_command_for_a_migration_in_trouble():
    found: dict[str, frozenset[str]] = {}
    for directory in ("agent", "common", "coordinator"):
        for path in (ROOT / directory).rglob("*.py"):
            verbs = OF_TROUBLE & set(COMMAND.findall(path.read_text(encoding="utf-8")))
            if verbs:
                found[str(path.relative_to(ROOT))] = verbs

    assert found == ELSEWHERE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_shows_only_commands_that_there_are(page: Path):
    verbs = set(COMMAND.findall(page.read_text(encoding="utf-8")))

    assert verbs <= {name for name in app if not name.startswith("-")}
