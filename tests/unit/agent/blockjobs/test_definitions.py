from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.blockjobs.chain import Layer
from agent.blockjobs.definitions import find_disk, follow, known_images
from agent.qemu.block_graph import decode_graph
from agent.qemu.block_status import path_of
from agent.vm.definition import Definition, Disk
from agent.vm.domain.parse import parse_domain
from agent.vm.options import Option, keyval, of_json
from common.errors import WrongState
from tests.qemu.disks import disk_xml, domain


def layer(path: str, node: str = "#block1", image_format: str = "qcow2") -> Layer:
    return Layer(path, image_format, node, f"{node}-f", 0, 0)


def definition(*disks: str) -> Definition:
    return parse_domain(domain("".join(disks)), "web.xml")


def followed(before: Definition, target: str, was: list[str], now: list[Layer]) -> Definition:
    return follow(
        before,
        target,
        was,
        now,
        new_name="ferry-0123456789ab",
        same=lambda one, other: one == other,
        is_device=lambda path: path.startswith("/dev/"),
    )


def nodes(found: Definition) -> dict[str, dict[str, object]]:
    return {option.get("node-name"): option.properties for option in found.find("blockdev")}


def drive(found: Definition, target: str = "vda") -> str:
    disk = find_disk(found, target)
    assert disk is not None
    device = next(option for option in found.find("device") if option.get("id") == disk.device)
    assert device.get("drive") == disk.node
    return disk.node


def assert_in_order(found: Definition) -> None:
    """Fail unless each node and device comes behind what it names."""
    seen: set[str] = set()
    for option in found.options:
        if option.name in ("blockdev", "device"):
            named = [option.get(key) for key in ("file", "backing", "drive") if isinstance(option.properties.get(key), str)]
            assert set(named) <= seen, (option, seen)
            seen.add(option.get("node-name"))


CHAIN = ["/i/top", "/i/mid", "/i/base"]
BACKED = (
    "<backingStore type='file'><format type='qcow2'/><source file='/i/mid'/>"
    "<backingStore type='file'><format type='raw'/><source file='/i/base'/><backingStore/></backingStore></backingStore>"
)


def test_a_copy_takes_the_place_of_the_image_and_is_opened_like_it():
    before = definition(disk_xml(Path("/i/top"), driver="cache='none' io='native' discard='unmap' detect_zeroes='unmap'"))

    after = followed(before, "vda", CHAIN, [layer("/i/new", "ferry-1")])

    assert set(nodes(after)) == {"ferry-1", "ferry-1-f"}
    upper, lower = nodes(after)["ferry-1"], nodes(after)["ferry-1-f"]
    assert upper["file"] == "ferry-1-f"
    assert (upper["cache"], upper["discard"], upper["detect-zeroes"]) == ({"direct": True, "no-flush": False}, "unmap", "unmap")
    assert (lower["filename"], lower["aio"], lower["cache"]) == ("/i/new", "native", {"direct": True, "no-flush": False})
    assert drive(after) == "ferry-1"
    assert_in_order(after)


def test_a_copy_to_a_block_device_is_opened_as_one():
    after = followed(definition(disk_xml(Path("/i/top"))), "vda", CHAIN, [layer("/dev/vg/web", "ferry-1", "raw")])

    assert nodes(after)["ferry-1-f"]["driver"] == "host_device"
    assert nodes(after)["ferry-1"]["driver"] == "raw"


def test_a_pull_leaves_the_top_without_what_was_below():
    before = definition(disk_xml(Path("/i/top"), inside=BACKED))

    after = followed(before, "vda", CHAIN, [layer("/i/top", "vda")])

    assert set(nodes(after)) == {"vda", "vda-file"}
    assert "backing" not in nodes(after)["vda"]
    assert drive(after) == "vda"


def test_an_intermediate_commit_joins_what_is_above_with_what_is_below():
    before = definition(disk_xml(Path("/i/top"), inside=BACKED))

    after = followed(before, "vda", CHAIN, [layer("/i/top", "vda"), layer("/i/base", "vda-backing2", "raw")])

    assert nodes(after)["vda"]["backing"] == "vda-backing2"
    assert set(nodes(after)) == {"vda", "vda-file", "vda-backing2", "vda-backing2-file"}
    assert_in_order(after)


def test_an_active_commit_opens_the_base_for_writing():
    before = definition(disk_xml(Path("/i/top"), inside=BACKED))

    after = followed(before, "vda", CHAIN, [layer("/i/base", "vda-backing2", "raw")])

    assert set(nodes(after)) == {"vda-backing2", "vda-backing2-file"}
    assert [one["read-only"] for one in nodes(after).values()] == [False, False]
    assert drive(after) == "vda-backing2"


def test_an_active_commit_into_an_image_without_options_gives_it_some():
    after = followed(definition(disk_xml(Path("/i/top"))), "vda", CHAIN, [layer("/i/base", "#block7")])

    assert nodes(after)["ferry-0123456789ab"]["file"] == "ferry-0123456789ab-f"
    assert nodes(after)["ferry-0123456789ab-f"]["filename"] == "/i/base"
    assert drive(after) == "ferry-0123456789ab"


def test_a_snapshot_stands_on_the_image_that_is_read_alone_from_then_on():
    now = [layer("/i/snap", "ferry-1"), layer("/i/top", "vda"), layer("/i/mid"), layer("/i/base")]

    after = followed(definition(disk_xml(Path("/i/top"))), "vda", CHAIN, now)

    assert nodes(after)["ferry-1"]["backing"] == "vda"
    assert (nodes(after)["vda"]["read-only"], nodes(after)["vda-file"]["read-only"]) == (True, True)
    assert "backing" not in nodes(after)["vda"]
    assert_in_order(after)


def test_filters_stay_on_top():
    limits = "<iotune><total_iops_sec>100</total_iops_sec></iotune>"
    before = definition(disk_xml(Path("/i/top"), inside=limits, driver="copy_on_read='on'"))

    after = followed(before, "vda", CHAIN, [layer("/i/new", "ferry-1")])

    assert nodes(after)["vda-cor"]["file"] == "ferry-1"
    assert nodes(after)["vda-throttle"]["file"] == "vda-cor"
    assert drive(after) == "vda-throttle"
    assert_in_order(after)


def test_other_disks_and_options_are_untouched():
    before = definition(disk_xml(Path("/i/top"), inside=BACKED), disk_xml(Path("/i/other"), "vdb"))

    after = followed(before, "vda", CHAIN, [layer("/i/new", "ferry-1")])

    mine = {"vda", "vda-file", "vda-backing1", "vda-backing1-file", "vda-backing2", "vda-backing2-file"}
    assert nodes(after).keys() - {"ferry-1", "ferry-1-f"} == nodes(before).keys() - mine
    assert drive(after, "vdb") == "vdb"
    others = [option for option in before.options if option.name not in ("blockdev", "device")]
    assert [option for option in after.options if option.name not in ("blockdev", "device")] == others


def test_to_follow_again_changes_nothing():
    before = definition(disk_xml(Path("/i/top"), inside=BACKED))
    for now in ([layer("/i/new", "ferry-1")], [layer("/i/top", "vda")], [layer("/i/top", "vda"), layer("/i/base", "vda-backing2")]):
        once = followed(before, "vda", CHAIN, now)

        assert followed(once, "vda", CHAIN, now) == once


def shared_base() -> Definition:
    """Two disks on one image that both name."""
    made = definition(disk_xml(Path("/i/a")), disk_xml(Path("/i/b"), "vdb"))
    base = [
        of_json("blockdev", {"driver": "file", "node-name": "base-f", "filename": "/i/base", "read-only": True}),
        of_json("blockdev", {"driver": "qcow2", "node-name": "base", "file": "base-f", "read-only": True}),
    ]
    tops = ("vda", "vdb")
    options: list[Option] = [
        replace(option, properties={**option.properties, "backing": "base"}) if option.get("node-name") in tops else option
        for option in made.options
    ]
    first = next(index for index, option in enumerate(options) if option.name == "blockdev")
    options[first:first] = base
    return replace(made, options=tuple(options))


def test_an_image_that_another_disk_stands_on_stays():
    after = followed(shared_base(), "vda", ["/i/a", "/i/base"], [layer("/i/a", "vda")])

    assert {"base", "base-f"} <= nodes(after).keys()
    assert "backing" not in nodes(after)["vda"]
    assert nodes(after)["vdb"]["backing"] == "base"
    assert_in_order(after)


def test_a_disk_of_dotted_words_is_followed():
    plain = definition(disk_xml(Path("/i/top")))
    words = {
        "driver": "qcow2",
        "node-name": "disk0",
        "file.driver": "file",
        "file.filename": "/i/top",
        "cache.direct": "on",
        "read-only": "off",
    }
    options = [option for option in plain.options if option.name != "blockdev"]
    device = next(index for index, option in enumerate(options) if option.get("drive") == "vda")
    options[device] = replace(options[device], properties={**options[device].properties, "drive": "disk0"})
    options.insert(device, keyval("blockdev", words))
    before = replace(plain, options=tuple(options), disks=(Disk("vda", "disk0", plain.disks[0].device, is_shareable=False),))

    after = followed(before, "vda", ["/i/top"], [layer("/i/new", "ferry-1")])
    snapped = followed(before, "vda", ["/i/top"], [layer("/i/snap", "ferry-1"), layer("/i/top", "disk0")])

    lower = {"driver": "file", "node-name": "ferry-1-f", "filename": "/i/new", "read-only": False, "cache": {"direct": True}}
    assert nodes(after)["ferry-1-f"] == lower
    assert nodes(after)["ferry-1"]["cache"] == {"direct": True}
    assert nodes(snapped)["disk0"]["read-only"] == "on"
    assert nodes(snapped)["ferry-1"]["backing"] == "disk0"


def test_a_disk_without_a_block_node_of_its_own_is_refused():
    plain = definition(disk_xml(Path("/i/top")))
    bare = replace(plain, options=tuple(option for option in plain.options if option.name != "blockdev"))

    with pytest.raises(WrongState, match="was not given as a -blockdev"):
        known_images(bare, bare.disks[0])


def test_a_definition_that_followed_can_be_stored():
    after = followed(definition(disk_xml(Path("/i/top"), inside=BACKED)), "vda", CHAIN, [layer("/i/new", "ferry-1")])

    assert Definition.from_record(after.to_record()) == after


@pytest.mark.parametrize(
    ("filename", "path"),
    [
        ("/i/top", "/i/top"),
        ('json:{"driver":"qcow2","file":{"driver":"file","filename":"/i/top"}}', "/i/top"),
        (
            'json:{"throttle-group":"g","driver":"throttle","file":{"driver":"qcow2","file":{"driver":"file","filename":"/i/top"}}}',
            "/i/top",
        ),
        ('json:{"driver":"blkdebug","image":{"driver":"file","filename":"/i/top"}}', "/i/top"),
        ("nbd://host:10809/x", "nbd://host:10809/x"),
        ("json:{broken", "json:{broken"),
    ],
)
def test_the_path_is_found_in_qemus_name(filename: str, path: str):
    assert path_of(filename) == path


def test_the_graph_tells_children_and_jobs():
    graph = decode_graph(
        {
            "nodes": [
                {"id": 1, "type": "block-driver", "name": "vda"},
                {"id": 2, "type": "block-driver", "name": "vda-file"},
                {"id": 3, "type": "block-job", "name": "j"},
            ],
            "edges": [
                {"parent": 1, "child": 2, "name": "file", "perm": [], "shared-perm": []},
                {"parent": 3, "child": 1, "name": "source", "perm": [], "shared-perm": []},
            ],
        }
    )

    assert (graph.child("vda", "file"), graph.child("vda", "backing")) == ("vda-file", "")
    assert graph.jobs_of(frozenset({"vda"})) == {"j"}
    assert (graph.is_used("vda-file"), graph.is_used("j")) == (True, False)
