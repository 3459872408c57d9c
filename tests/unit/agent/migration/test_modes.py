"""What is wished beside the transfer itself: checked, and the same after its way over the wire."""

from __future__ import annotations

import pytest

from agent import wire_modes
from agent.migration.modes import Modes, Persistence, SourceDefinition
from common.errors import InvalidRequest
from ferry.common.v1 import modes_pb2 as pb


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ({"announce_round_count": -1}, "-1; 0"),
        ({"announce_round_count": 1001}, "1001; 0"),
        ({"offline": True, "suspend": True}, "suspend and offline"),
        ({"offline": True, "announce_round_count": 5}, "announce-rounds and offline"),
        ({"offline": True, "persistence": Persistence.TRANSIENT}, "transient and offline"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(wish: dict[str, object], told: str):
    with pytest.raises(InvalidRequest, match=told):
        Modes(**wish)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("persistence", "source_definition", "is_kept"),
    [
        (Persistence.AS_ON_SOURCE, SourceDefinition.FOLLOWS, False),
        (Persistence.PERSISTENT, SourceDefinition.FOLLOWS, False),
        (Persistence.TRANSIENT, SourceDefinition.FOLLOWS, True),
        (Persistence.TRANSIENT, SourceDefinition.UNDEFINE, False),
        (Persistence.AS_ON_SOURCE, SourceDefinition.KEEP, True),
    ],
)
def test_a_definition_that_the_destination_does_not_keep_stays_on_the_source(persistence, source_definition, is_kept):
    modes = Modes(persistence=persistence, source_definition=source_definition)

    assert modes.keeps_source_definition is is_kept


@pytest.mark.parametrize("on_source", [True, False])
def test_without_a_wish_the_destination_keeps_what_the_source_kept(on_source):
    assert Modes().is_persistent(on_source=on_source) is on_source
    assert Modes(persistence=Persistence.PERSISTENT).is_persistent(on_source=on_source)
    assert not Modes(persistence=Persistence.TRANSIENT).is_persistent(on_source=on_source)


@pytest.mark.parametrize(
    "modes",
    [
        Modes(),
        Modes(announce_round_count=0),
        Modes(7, suspend=True, persistence=Persistence.TRANSIENT, leave_clock=True),
        Modes(persistence=Persistence.PERSISTENT, source_definition=SourceDefinition.UNDEFINE, offline=True),
        Modes(source_definition=SourceDefinition.KEEP),
    ],
)
def test_modes_are_the_same_after_their_way_over_the_wire(modes):
    assert wire_modes.modes(pb.Modes.FromString(wire_modes.modes_message(modes).SerializeToString())) == modes


def test_a_word_of_a_newer_client_is_refused():
    with pytest.raises(InvalidRequest, match="persistence 9"):
        wire_modes.modes(pb.Modes.FromString(b"\x18\x09"))
