from __future__ import annotations

import pytest

from tests.chaos.advice import commands


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("nothing to do", []),
        (
            "If host-b is dead for good: ferry migration fence 12ab --host host-a",
            [("migration", "fence", "12ab", "--host", "host-a")],
        ),
        (
            "End one: ferry vm stop web --force --host host-a  or  ferry vm stop web --force --host host-b",
            [("vm", "stop", "web", "--force", "--host", "host-a"), ("vm", "stop", "web", "--force", "--host", "host-b")],
        ),
        ("it waits: ferry migration recover 12 [PEER_SILENT]", [("migration", "recover", "12")]),
        ("see ferry vm show web, and look again", []),
        ("run `ferry vm start web --host host-b`; then look", [("vm", "start", "web", "--host", "host-b")]),
        ("(ferry vm discard-saved web) or not", [("vm", "discard-saved", "web")]),
        ("ferry vm start web --host host-b. It goes on", [("vm", "start", "web", "--host", "host-b")]),
    ],
)
def test_a_command_is_found_as_it_would_be_typed(text, wanted):
    assert commands(text) == wanted
