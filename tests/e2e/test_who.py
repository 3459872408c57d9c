"""Who did what is on record where it was done, whoever carried it out."""

from __future__ import annotations

import json

from tests.e2e.lab import Lab
from tests.e2e.move import State
from tests.e2e.test_plan import ferry


async def test_agents_and_journal_know_who_started_a_move(lab: Lab):
    guest = await lab.start_guest()

    outcome = await (await lab.start_move()).outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert outcome.started_by == "operator operator"
    for host, rpc in (("host-a", "BeginMigration"), ("host-b", "PrepareMigration")):
        lines = [json.loads(line) for line in (lab.fleet.directory / host / "audit.jsonl").read_text().splitlines()]
        [line] = [line for line in lines if line["rpc"] == rpc and line.get("migration") == outcome.id]
        assert (line["who"].split()[0], line["by"]) == ("coordinator", "operator operator")
    own = [json.loads(line) for line in (lab.fleet.directory / "coordinator" / "audit.jsonl").read_text().splitlines()]
    assert [line["who"] for line in own if line["rpc"] == "StartMigration" and line.get("vm") == "web"][-1:] == [
        "operator operator"
    ]
    _, said, _ = await ferry(lab, "migration", "show", outcome.id)
    assert "operator operator" in said
    await lab.assert_only_on("host-b", guest)
