"""Where the images of a definition are, and the same definition with them elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.vm.definition import Definition, Disk
from agent.vm.disk_images import check_known, disk_images, node_options, placed, standing_alone
from agent.vm.domain.parse import parse_domain
from agent.vm.guest_view import differences
from agent.vm.host_files import written_images
from agent.vm.inner_nodes import inner_file
from agent.vm.options import Option, Syntax
from common.errors import InvalidRequest


def definition(*disks: str) -> Definition:
    return parse_domain(
        f"""<domain type='kvm'><name>web</name><memory>65536</memory><os><type machine='q35'>hvm</type></os>
        <devices>{"".join(disks)}</devices></domain>""".encode(),
        "web.xml",
    )


CHAIN = """<disk type='file'><driver name='qemu' type='qcow2'/><source file='/srv/top'/><target dev='vda'/>
    <backingStore type='file'><format type='qcow2'/><source file='/srv/mid'/>
    <backingStore type='file'><format type='raw'/><source file='/srv/base'/><backingStore/></backingStore></backingStore></disk>"""
LIMITED = """<disk type='file'><driver name='qemu' type='raw' copy_on_read='on'/><source file='/srv/limited'/>
    <target dev='vdb'/><iotune><total_bytes_sec>1000</total_bytes_sec></iotune></disk>"""
BLOCK = "<disk type='block'><driver name='qemu' type='raw'/><source dev='/dev/sdx'/><target dev='vdc'/></disk>"
NETWORK = """<disk type='network'><driver name='qemu' type='raw'/><source protocol='nbd' name='x'><host name='nas'/></source>
    <target dev='vdd'/></disk>"""
CDROM = "<disk type='file' device='cdrom'><source file='/srv/x.iso'/><target dev='sda' bus='sata'/></disk>"
EMPTY = "<disk type='file' device='cdrom'><target dev='sdb' bus='sata'/></disk>"
SHARED = "<disk type='file'><driver name='qemu' type='raw'/><source file='/srv/s'/><target dev='vde'/><shareable/></disk>"


def test_every_disk_with_a_medium_is_listed_with_its_image():
    found = {image.disk: image for image in disk_images(definition(CHAIN, LIMITED, BLOCK, NETWORK, CDROM, EMPTY, SHARED))}

    assert {disk: image.path for disk, image in found.items()} == {
        "vda": "/srv/top",
        "vdb": "/srv/limited",
        "vdc": "/dev/sdx",
        "vdd": "",
        "sda": "/srv/x.iso",
        "vde": "/srv/s",
    }
    assert (found["vda"].format, found["vdb"].format) == ("qcow2", "raw")
    assert found["vdb"].format_node == "vdb"
    assert found["vdb"].node != "vdb"
    assert [disk for disk, image in found.items() if image.is_read_only] == ["sda"]
    assert [disk for disk, image in found.items() if image.is_shareable] == ["vde"]


def test_an_image_at_another_path_changes_nothing_that_the_guest_can_tell():
    before = definition(CHAIN, LIMITED)

    after = placed(placed(before, "vda", "/fast/top"), "vdb", "/fast/limited")

    assert [image.path for image in disk_images(after)] == ["/fast/top", "/fast/limited"]
    assert differences(before, placed(before, "vda", "/fast/top")) == ()


def test_an_image_is_opened_as_what_is_at_its_path():
    drivers = [
        node_options(placed(definition(BLOCK), "vdc", "/x", is_block_device=there), "vdc")[-1].get("driver")
        for there in (None, False, True)
    ]

    assert drivers == ["host_device", "file", "host_device"]


def test_an_image_that_stands_alone_has_none_of_the_nodes_below_it():
    after = standing_alone(definition(CHAIN, LIMITED), "vda")

    nodes = {option.get("node-name") for option in after.find("blockdev")}
    assert {"vda", "vda-file"} <= nodes
    assert not [node for node in nodes if "backing" in node]
    assert next(option for option in after.find("blockdev") if option.get("node-name") == "vda").properties["backing"] is None
    assert standing_alone(after, "vda") == after


def test_a_disk_that_there_is_none_of_is_refused_with_those_that_there_are():
    for refuse in (lambda: placed(definition(CHAIN, NETWORK), "vdz", "/x"), lambda: check_known(definition(CHAIN, NETWORK), "vdz")):
        with pytest.raises(InvalidRequest, match="no disk vdz; it has: vda, vdd"):
            refuse()
    with pytest.raises(InvalidRequest, match="vdd is no file"):
        placed(definition(NETWORK), "vdd", "/x")


INNER: dict[str, dict[str, object]] = {
    "json": {"driver": "raw", "node-name": "n", "file": {"driver": "file", "filename": "/srv/x"}},
    "words": {"driver": "raw", "node-name": "n", "file.driver": "file", "file.filename": "/srv/x"},
}


@pytest.mark.parametrize("way", INNER)
def test_an_image_in_the_option_of_another_node_is_found_and_placed(way: str):
    """It is one that the guest writes to, so that nothing goes on without a proof that both hosts see the same."""
    base = definition()
    node = Option("blockdev", Syntax.JSON if way == "json" else Syntax.KEYVAL, None, INNER[way])
    before = replace(base, options=(*base.options, node), disks=(Disk("vdb", "n", "d", is_shareable=False),))

    after = placed(before, "vdb", "/dev/x", is_block_device=True)

    assert [(file.what, file.path) for file in written_images(before)] == [("disk vdb", "/srv/x")]
    assert [image.path for image in disk_images(before)] == ["/srv/x"]
    assert [image.path for image in disk_images(after)] == ["/dev/x"]
    assert inner_file(next(after.find("blockdev")))["driver"] == "host_device"
