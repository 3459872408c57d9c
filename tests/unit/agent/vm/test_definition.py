"""A definition travels as a record and is checked wherever it arrives."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from agent.vm.definition import Definition
from agent.vm.host_files import Use, host_files
from agent.vm.options import Option, keyval, of_json
from common.errors import InvalidRequest
from tests.unit.agent.vm.samples import FULL, parse, pinned


def record(xml: str = FULL) -> dict[str, Any]:
    """Make a definition's record as another host would receive it."""
    copy: dict[str, Any] = json.loads(json.dumps(pinned(xml).to_record()))
    return copy


def test_a_definition_comes_back_equal() -> None:
    assert Definition.from_record(record()) == pinned(FULL)


@pytest.mark.parametrize("value", [None, [], "x", {}, {"version": 3}, {"version": 2}, {"version": 1}])
def test_what_is_no_definition_is_refused(value: object) -> None:
    with pytest.raises(InvalidRequest):
        Definition.from_record(value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "a\nb"),
        ("machine", "q35,accel=tcg"),
        ("emulator", "-version"),
        ("memory_kib", 0),
        ("vcpu_count", 1 << 20),
        ("cpu", {"mode": "custom", "model": "a,b", "properties": {}}),
        ("cpu", {"mode": "maximum", "model": "max", "properties": {}}),
        ("cpu", {"mode": "maximum", "model": None, "properties": {"a,b": True}}),
        ("smp", {"cores=1,x": 1}),
        ("cpu_shares", 0),
        ("disks", [{"target": "vda"}]),
        ("taps", [{"netdev": "n", "device": "a b", "bridge": None, "queue_count": 1, "has_vhost": False}]),
    ],
)
def test_a_record_from_elsewhere_obeys_the_same_rules(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest):
        Definition.from_record(record() | {field: value})


@pytest.mark.parametrize(
    "properties",
    [
        {"dumpdtb": "/srv/x"},
        {"dumpdtb": "x"},
        {"x-table": "/etc/shadow"},
        {"boot": {"what": "/etc/shadow"}},
        {"initrd": "/srv/vm/a,/etc/shadow"},
    ],
)
def test_a_machine_neither_writes_a_file_nor_names_one_in_a_way_that_is_not_known(properties: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match="-machine,"):
        Definition.from_record(record() | {"machine_properties": properties})


@pytest.mark.parametrize(
    "properties", [{key: "/etc/shadow"} for key in ("kernel", "initrd", "dtb", "firmware")] + [{"boot": {"splash": "/etc/shadow"}}]
)
def test_files_of_a_machine_are_files_of_its_definition(properties: dict[str, object]) -> None:
    definition = replace(pinned(FULL), machine_properties=properties)

    assert [(file.path, file.use) for file in host_files(definition) if file.what.startswith("machine")] == [
        ("/etc/shadow", Use.READ)
    ]


def test_words_of_a_machine_may_have_slashes() -> None:
    replace(pinned(FULL), machine_properties={"append": "root=/dev/vda", "x-oem-id": "A/B"})


@pytest.mark.parametrize(
    ("name", "properties"),
    [
        ("mon", {"chardev": "x"}),
        ("qmp", {"unix": "/x"}),
        ("daemonize", {}),
        ("run-with", {"user": "root"}),
        ("netdev", {"type": "tap", "id": "n", "script": "/bin/sh"}),
        ("netdev", {"type": "tap", "id": "n", "helper": "/bin/sh"}),
        ("netdev", {"type": "user", "id": "n", "guestfwd": [{"str": "tcp:10.0.2.1:1-cmd:sh"}]}),
        ("chardev", {"backend": "socket", "id": "c", "fd": "3"}),
        ("chardev", {"backend": "socket", "id": "c", "path": "{run}/../../etc/x"}),
        ("device", {"driver": "x", "a,b": 1}),
        ("device", {"driver": "x", "a": "line\nbreak"}),
        ("device", {"driver": "x", "a": "nul\0"}),
        ("device", {"driver": "x", "a": None}),
    ],
)
def test_no_option_from_elsewhere_runs_a_program_or_leaves_its_place(name: str, properties: dict[str, object]) -> None:
    changed = record()
    changed["options"].append({"name": name, "syntax": "json", "text": None, "properties": properties})

    with pytest.raises(InvalidRequest):
        Definition.from_record(changed)


def test_two_devices_cannot_share_an_address() -> None:
    changed = record()
    devices = [option for option in changed["options"] if option["name"] == "device" and "addr" in option["properties"]]
    for key in ("bus", "addr"):
        devices[0]["properties"][key] = devices[1]["properties"][key]

    with pytest.raises(InvalidRequest, match=r"address .* is given twice"):
        Definition.from_record(changed)


def test_an_initrd_with_a_comma_would_be_two_files_and_is_refused() -> None:
    changed = record()
    (initrd,) = [option for option in changed["options"] if option["name"] == "initrd"]
    initrd["text"] = "/boot/initrd,/etc/shadow"

    with pytest.raises(InvalidRequest, match="commas"):
        Definition.from_record(changed)


def test_files_of_the_host_are_listed_with_their_use() -> None:
    assert [(file.what, file.path, file.use) for file in host_files(pinned(FULL))] == [
        ("kernel", "/boot/vmlinuz", Use.READ),
        ("initrd", "/boot/initrd", Use.READ),
        ("disk vda", "/srv/web,1.qcow2", Use.WRITE),
        ("disk vdb", "/srv/data.img", Use.READ),
        ("serial0", "/var/log/a,b.log", Use.MAKE),
        ("serial1", "/run/x.sock", Use.MAKE),
    ]


@pytest.mark.parametrize(
    ("option", "path"),
    [
        (of_json("object", {"qom-type": "memory-backend-file", "id": "m", "mem-path": "/dev/shm/x"}), "/dev/shm/x"),
        (of_json("object", {"qom-type": "rng-random", "id": "r", "filename": "/etc/shadow"}), "/etc/shadow"),
        (of_json("device", {"driver": "loader", "file": "/etc/shadow"}), "/etc/shadow"),
        (of_json("blockdev", {"driver": "nbd", "node-name": "n", "server": {"type": "unix", "path": "/run/n"}}), "/run/n"),
        (keyval("fsdev", {"fsdriver": "local", "id": "f", "path": "/etc"}), "/etc"),
        (keyval("vnc", {"vnc": "unix:/run/v"}), "/run/v"),
        (keyval("chardev", {"backend": "pty", "id": "c", "logfile": "/var/log/c"}), "/var/log/c"),
    ],
)
def test_no_path_of_an_option_is_overlooked(option: Option, path: str) -> None:
    definition = replace(pinned(FULL), options=(option,), disks=(), taps=())

    assert path in [file.path for file in host_files(definition)]


def test_a_definition_of_the_sample_stays_what_it_is() -> None:
    assert parse(FULL).accelerator is None
