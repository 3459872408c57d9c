"""Whatever QEMU answers, reading it ends with a value or with NotUnderstood."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.qemu.abilities import decode_compressions
from agent.qemu.block_graph import decode_graph
from agent.qemu.block_status import decode_block_jobs, decode_drives, decode_image, decode_jobs, decode_nodes, path_of
from agent.qemu.errors import NotUnderstood
from agent.qemu.machine import (
    decode_capabilities,
    decode_chardevs,
    decode_cpu_models,
    decode_feature_words,
    decode_first_cpu_path,
    decode_machines,
    decode_memory_size,
    decode_property_names,
    decode_version,
)
from agent.qemu.status import decode_dirty_rate, decode_migration, decode_run_state

DECODERS: Final[tuple[Callable[[object], object], ...]] = (
    decode_block_jobs,
    decode_capabilities,
    decode_chardevs,
    decode_compressions,
    decode_cpu_models,
    decode_dirty_rate,
    decode_drives,
    decode_feature_words,
    decode_first_cpu_path,
    decode_graph,
    decode_image,
    decode_jobs,
    decode_machines,
    decode_memory_size,
    decode_migration,
    decode_nodes,
    decode_property_names,
    decode_run_state,
    decode_version,
)
KEYS: Final = (
    *("status", "ram", "total", "socket-address", "type", "host", "port", "path", "str", "vfio", "xbzrle-cache", "nodes", "edges"),
    *(
        "id",
        "name",
        "parent",
        "child",
        "inserted",
        "image",
        "backing-image",
        "filename",
        "format",
        "virtual-size",
        "snapshots",
        "device",
    ),
    *("format-specific", "data", "node-name", "qemu", "major", "minor", "micro", "cpu-index", "qom-path", "label", "capability"),
    *("cpuid-register", "features", "cpuid-input-eax", "base-memory", "arg-type", "members", "values", "current-progress"),
)
WORDS: Final = ("inet", "x", "", "/a", "migrate-set-parameters", "EAX")
LEAVES: Final = st.none() | st.booleans() | st.integers() | st.sampled_from(WORDS)
VALUES: Final = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6), max_leaves=25
)


@pytest.mark.parametrize("decode", DECODERS)
@settings(max_examples=60, deadline=None)
@given(reply=VALUES)
def test_an_odd_reply_is_understood_or_not(decode: Callable[[object], object], reply: object):
    with suppress(NotUnderstood):
        decode(reply)


def test_replies_that_lead_nowhere_are_not_understood():
    for decode, reply in (
        (decode_graph, {"nodes": [], "edges": [{"parent": 1, "child": 2, "name": "x"}]}),
        (decode_graph, {}),
        (decode_compressions, []),
        (decode_compressions, [{"name": "migrate-set-parameters", "arg-type": "5"}]),
        (decode_migration, {"status": "setup", "socket-address": [{"type": "inet", "host": "x", "port": "http"}]}),
    ):
        with pytest.raises(NotUnderstood):
            decode(reply)


def test_a_name_in_json_that_is_nested_too_deeply_is_taken_as_it_is():
    name = "json:" + "[" * 100_000

    assert path_of(name) == name
