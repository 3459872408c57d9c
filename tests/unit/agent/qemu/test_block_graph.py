"""Which images are inactive, by what QEMU tells of who may do what with them."""

from __future__ import annotations

import pytest

from agent.qemu.block_graph import decode_graph
from agent.qemu.block_status import decode_drives
from tests.transcripts import VERSIONS, load

DEVICES = 5


def drives_of(version: str, state: str) -> set[str]:
    """Name the nodes of drives with a device in front that neither write nor keep others from anything."""
    unclaimed = decode_graph(load(version, f"x-debug-query-block-graph.{state}")["return"]).unclaimed()
    drives = decode_drives(load(version, f"query-block.{state}")["return"])
    return {drive.node for drive in drives if drive.device and drive.node in unclaimed}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_image_of_a_guest_that_came_paused_is_unclaimed(version: str):
    assert len(drives_of(version, "inactive")) == DEVICES


@pytest.mark.parametrize("version", VERSIONS)
def test_of_a_guest_that_has_its_images_only_a_shared_read_only_one_looks_so(version: str):
    assert drives_of(version, "active") == {"shared"}


@pytest.mark.parametrize("version", VERSIONS)
def test_roots_are_what_no_node_stands_on(version: str):
    graph = decode_graph(load(version, "x-debug-query-block-graph.inactive")["return"])

    roots = graph.roots()

    assert {"disk", "shared", "cd", "spare"} < set(roots)
    assert len(graph.nodes) == 2 * len(roots)
