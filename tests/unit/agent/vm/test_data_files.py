"""The data file that a definition gives a disk: found, and put elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.vm.data_files import files_beside, find_data_file, with_data_file
from agent.vm.definition import Disk
from agent.vm.disk_images import disk_images
from agent.vm.options import Option, Syntax
from tests.unit.agent.vm.samples import domain, parse

PLAIN = {"driver": "file", "filename": "/srv/a.data"}
TOP: dict[str, Any] = {"driver": "qcow2", "node-name": "top", "file": {"driver": "file", "filename": "/srv/a.qcow2"}}
NODES: dict[str, list[dict[str, Any]]] = {
    "inside": [{**TOP, "data-file": PLAIN}],
    "node": [{**PLAIN, "node-name": "bytes"}, {**TOP, "data-file": "bytes"}],
    "words": [{**TOP, "data-file.driver": "file", "data-file.filename": "/srv/a.data"}],
}


def with_nodes(*nodes: dict[str, Any]):
    given = parse(domain())
    options = tuple(Option("blockdev", Syntax.JSON, None, dict(node)) for node in nodes)
    return replace(given, options=(*given.options, *options), disks=(Disk("vda", "top", "disk0", is_shareable=False),))


@pytest.mark.parametrize("way", NODES)
def test_a_data_file_that_a_definition_gives_is_found_and_put_elsewhere(way: str):
    given = with_nodes(*NODES[way])

    placed = with_data_file(given, "vda", "/fast/b.data", is_block_device=False)

    assert find_data_file(given, "vda") == "/srv/a.data"
    assert find_data_file(placed, "vda") == "/fast/b.data"
    assert "/srv/a.data" not in json.dumps([option.properties for option in placed.find("blockdev")])


def test_a_data_file_behind_more_nodes_has_no_path():
    given = with_nodes({**TOP, "data-file": {"driver": "raw", "file": PLAIN}})

    assert find_data_file(given, "vda") == ""


def test_a_definition_that_leaves_it_to_the_header_is_unchanged():
    given = with_nodes(TOP)

    assert find_data_file(given, "vda") is None
    assert with_data_file(given, "vda", "/fast/b.data", is_block_device=False) is given


def test_extents_belong_to_an_image_wherever_its_descriptor_names_them(tmp_path: Path):
    path = tmp_path / "a.vmdk"
    path.write_text('# Disk DescriptorFile\nversion=1\nRW 2048 FLAT "a-flat.vmdk" 0\nRW 2048 FLAT "/else/b.vmdk" 0\n')
    given = with_nodes({**TOP, "driver": "vmdk", "file": {"driver": "file", "filename": str(path)}})
    (image,) = disk_images(given)

    assert files_beside(given, image) == (str(tmp_path / "a-flat.vmdk"), "/else/b.vmdk")
