"""The figures of past migrations are kept, and not too many."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from agent import store as store_module
from agent import wire_past
from agent.migration import outgoing as out
from agent.migration.machine import Cause
from agent.migration.order import Options, Role
from agent.migration.past import KEPT_COUNT, PastMigrations, past_of
from agent.migration.progress import Progress, Timeline
from agent.migration.record import Facts
from agent.qemu.figures import Figures, XbzrleFigures
from agent.store import Store

UUID = str(uuid4())
XBZRLE = XbzrleFigures(
    cache_size_bytes=4096,
    sent_bytes=10,
    page_count=2,
    cache_miss_count=3,
    cache_miss_rate=0.5,
    encoding_rate=1.5,
    overflow_count=1,
)
FACTS = Facts(
    "m-0",
    Role.SOURCE,
    UUID,
    "web",
    Options(),
    epoch=1,
    began_at_s=1.0,
    token="secret",
    ended_at_s=9.0,
    peer="host-b",
    timeline=Timeline(started_at_s=2.0, stopped_at_s=3.0, continued_at_s=4.0, completed_at_s=5.0, resumed_at_s=6.0),
    progress=Progress(pass_count=3, figures=Figures(multifd_bytes=7, xbzrle=XBZRLE, vcpu_blocktimes_ms=(1, 2))),
)


def test_figures_survive_a_restart_and_hold_no_token(tmp_path: Path):
    past = past_of(FACTS, out.Retired())
    PastMigrations(Store(tmp_path)).keep(past)

    assert PastMigrations(Store(tmp_path)).of("web") == (past,)
    assert PastMigrations(Store(tmp_path)).of(UUID) == (past,)
    assert not any("secret" in path.read_text() for path in tmp_path.rglob("*.json"))


def test_the_last_twenty_of_a_vm_are_kept(tmp_path: Path):
    kept = PastMigrations(Store(tmp_path))
    other = replace(FACTS, vm_uuid=str(uuid4()), vm_name="db")
    kept.keep(past_of(other, out.Retired()))

    for number in range(KEPT_COUNT + 5):
        kept.keep(past_of(replace(FACTS, migration_id=f"m-{number}", began_at_s=float(number)), out.Retired()))

    assert [past.migration_id for past in kept.of("web")] == [f"m-{number}" for number in range(KEPT_COUNT + 4, 4, -1)]
    assert len(kept.of("db")) == 1


def test_of_too_many_vms_those_that_moved_longest_ago_are_forgotten(tmp_path: Path):
    store = Store(tmp_path)
    uuids = [uuid4() for _ in range(store_module.MAX_STATISTICS_COUNT)]
    store.save_statistics(uuids[0], {})
    old = tmp_path / "statistics" / f"{uuids[0]}.json"
    for uuid in uuids[1:]:
        (old.parent / f"{uuid}.json").write_bytes(old.read_bytes())
    os.utime(old, ns=(0, 0))

    store.save_statistics(uuid4(), {})

    assert not old.exists()
    assert len(store.statistics_uuids()) == store_module.MAX_STATISTICS_COUNT


def test_a_file_that_cannot_be_read_is_as_good_as_none(tmp_path: Path):
    store = Store(tmp_path)
    kept = PastMigrations(store)
    kept.keep(past_of(FACTS, out.Retired()))
    (tmp_path / "statistics" / f"{UUID}.json").write_text("{")

    assert kept.of("web") == ()
    kept.keep(past_of(FACTS, out.Retired()))
    assert len(kept.of("web")) == 1


def test_figures_travel_whole():
    cause = Cause("no room", "NO_ROOM")

    message = wire_past.statistics(past_of(FACTS, out.Kept(cause)))

    assert (message.id, message.peer_host, message.phase, message.error_reason) == ("m-0", "host-b", "Kept", "NO_ROOM")
    assert message.end_time.ToSeconds() == 9
    assert message.downtime.total.ToSeconds() == 3
    assert message.progress.figures.multifd_bytes == 7
    assert message.progress.figures.xbzrle.encoding_rate == 1.5
    assert list(message.progress.figures.vcpu_blocktimes_ms) == [1, 2]
    assert not message.progress.figures.HasField("blocktime_ms")
