"""Images of the network, encrypted images, and the order and manners of disks, as libvirt gives them."""

from __future__ import annotations

import pytest

from agent.vm.definition import Definition
from agent.vm.host_files import hidden_paths, host_files
from common.errors import InvalidRequest
from tests.unit.agent.vm.samples import domain, parse

SECRET = "<secret type='{}' usage='a/b'/>"


def blockdevs(definition: Definition) -> dict[str, dict[str, object]]:
    return {option.get("node-name"): option.properties for option in definition.find("blockdev")}


def network_disk(source: str, inside: str = "") -> Definition:
    return parse(domain(devices=f"<disk type='network'>{inside}{source}<target dev='vda' bus='virtio'/></disk>"))


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (
            "<source protocol='rbd' name='p/ns/i'><host name='m' port='1'/><host name='::1'/><config file='/etc/c'/></source>",
            {
                "driver": "rbd",
                "pool": "p",
                "namespace": "ns",
                "image": "i",
                "conf": "/etc/c",
                "server": [{"host": "m", "port": "1"}, {"host": "::1", "port": "6789"}],
            },
        ),
        (
            "<source protocol='iscsi' name='iqn.a:b/3'><host name='2001:db8::1'/></source>",
            {"driver": "iscsi", "portal": "[2001:db8::1]:3260", "target": "iqn.a:b", "lun": 3, "transport": "tcp"},
        ),
        (
            "<source protocol='https' name='a.img' query='k=v'><host name='h'/><ssl verify='no'/><timeout seconds='9'/></source>",
            {"driver": "https", "url": "https://h:443/a.img?k=v", "sslverify": False, "timeout": 9},
        ),
        (
            "<source protocol='nfs' name='/export/a.img'><host name='h'/><identity user='+5' group='+6'/></source>",
            {"driver": "nfs", "server": {"host": "h", "type": "inet"}, "path": "/export/a.img", "user": 5, "group": 6},
        ),
        (
            "<source protocol='ssh' name='/srv/a.img'><host name='h'/><identity username='u'/></source>",
            {"driver": "ssh", "path": "/srv/a.img", "server": {"host": "h", "port": "22"}, "user": "u"},
        ),
        (
            "<source protocol='gluster' name='v/d/a.img'><host transport='unix' socket='/s'/></source>",
            {"driver": "gluster", "volume": "v", "path": "d/a.img", "server": [{"type": "unix", "path": "/s"}], "debug": 4},
        ),
    ],
)
def test_an_image_of_the_network_becomes_the_node_that_libvirt_makes(source, wanted):
    found = blockdevs(network_disk(source))["vda-file"]

    assert {key: value for key, value in found.items() if key not in ("node-name", "read-only", "discard")} == wanted


def test_a_path_on_a_server_is_no_file_of_the_host_and_one_of_the_host_is():
    of_server = network_disk("<source protocol='nfs' name='/export/a.img'><host name='h'/></source>")
    of_host = network_disk("<source protocol='rbd' name='p/i'><config file='/etc/ceph/c.conf'/></source>")

    assert (host_files(of_server), hidden_paths(of_server)) == ((), ())
    assert [file.path for file in host_files(of_host)] == ["/etc/ceph/c.conf"]


def test_a_secret_is_read_from_a_file_that_its_usage_names_and_stands_in_no_option():
    auth = f"<auth username='u'>{SECRET.format('ceph')}</auth>"

    definition = network_disk("<source protocol='rbd' name='p/i'/>", auth)

    [secret] = definition.find("object")
    assert secret.properties == {"qom-type": "secret", "id": "vda-auth", "file": "/etc/ferry/secrets/a%2Fb"}
    found = blockdevs(definition)["vda-file"]
    assert (found["user"], found["key-secret"]) == ("u", "vda-auth")
    assert [file.path for file in host_files(definition)] == ["/etc/ferry/secrets/a%2Fb"]


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("raw", {"driver": "luks", "key-secret": "vda-key"}),
        ("qcow2", {"driver": "qcow2", "encrypt": {"format": "luks", "key-secret": "vda-key"}}),
    ],
)
def test_an_encrypted_image_is_opened_with_its_key(kind, wanted):
    encryption = f"<encryption format='luks'>{SECRET.format('passphrase')}</encryption>"
    xml = f"<disk type='file'><driver type='{kind}'/><source file='/d'>{encryption}</source><target dev='vda' bus='virtio'/></disk>"

    assert blockdevs(parse(domain(devices=xml)))["vda"].items() >= wanted.items()


@pytest.mark.parametrize("name", ["p", "/i", "p/", "a/b/c/d"])
def test_a_name_that_no_ceph_has_is_refused(name):
    with pytest.raises(InvalidRequest, match="pool/image"):
        network_disk(f"<source protocol='rbd' name='{name}'/>")


def test_disks_stand_in_the_order_in_which_their_buses_appear_each_with_its_targets_sorted():
    disks = "".join(
        f"<disk type='file'><source file='/{target}'/><target dev='{target}' bus='{bus}'/></disk>"
        for target, bus in (("vdb", "virtio"), ("hda", "ide"), ("vda", "virtio"))
    )

    definition = parse(domain(devices=disks, machine="pc"))

    assert [disk.target for disk in definition.disks] == ["vda", "vdb", "hda"]
    assert (
        next(option.get("id") for option in definition.find("device") if option.properties.get("bootindex") == 1) == "virtio-disk0"
    )


@pytest.mark.parametrize(
    ("policies", "wanted"),
    [
        ("error_policy='stop'", ("stop", "stop")),
        ("error_policy='report' rerror_policy='ignore'", ("report", "ignore")),
        ("error_policy='enospace'", ("enospc", None)),
        ("rerror_policy='stop'", (None, "stop")),
    ],
)
def test_what_happens_at_an_error_of_a_write_happens_at_one_of_a_read_unless_that_is_said(policies, wanted):
    xml = f"<disk type='file'><driver {policies}/><source file='/d'/><target dev='vda' bus='virtio'/></disk>"
    [disk] = [option.properties for option in parse(domain(devices=xml)).find("device") if option.get("id") == "virtio-disk0"]

    assert (disk.get("werror"), disk.get("rerror")) == wanted


@pytest.mark.parametrize(
    ("words", "is_direct"), [("<shareable/>", True), ("<shareable/><driver cache='writeback'/>", False), ("<readonly/>", None)]
)
def test_a_shared_disk_is_not_cached_unless_that_is_said(words, is_direct):
    xml = f"<disk type='file'>{words}<source file='/d'/><target dev='vda' bus='virtio'/></disk>"
    cache = blockdevs(parse(domain(devices=xml)))["vda"].get("cache")

    assert (cache and cache["direct"]) == is_direct  # type: ignore[index]
