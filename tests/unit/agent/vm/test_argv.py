"""Definitions become command lines, and nothing in them becomes an option."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.vm import argv
from agent.vm.definition import Accelerator, CpuMode
from agent.vm.devices import Chardev, ChardevKind, Serial
from tests.unit.agent.vm.samples import FULL, domain, pinned

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.vm.definition import Definition

TAPS = {"52:54:00:aa:bb:cc": 0}
BARE = frozenset({"-nodefaults", "-no-user-config", "-S"})
WITH_VALUE = frozenset(
    [
        "-name",
        "-uuid",
        "-display",
        "-sandbox",
        "-chardev",
        "-mon",
        "-machine",
        "-accel",
        "-cpu",
        "-m",
        "-smp",
        "-rtc",
        "-global",
        "-boot",
        "-action",
        "-bios",
        "-kernel",
        "-initrd",
        "-append",
        "-netdev",
        "-device",
        "-blockdev",
        "-object",
        "-incoming",
    ]
)


def build(definition: Definition, **changes: object) -> tuple[str, ...]:
    """Build a command line for a host like any other."""
    taps = {interface.mac: 20 + index for index, interface in enumerate(definition.interfaces)}
    host = argv.HostSide(binary="/usr/bin/qemu", accelerator=Accelerator.TCG, qmp_fd=9, tap_fds=taps)
    return argv.build(definition, replace(host, **changes))  # type: ignore[arg-type]


def options(command_line: Sequence[str]) -> list[tuple[str, str]]:
    """Split a command line as QEMU does: each known option takes the next argument, whatever that looks like."""
    found = []
    rest = iter(command_line[1:])
    for option in rest:
        assert option in BARE | WITH_VALUE
        found.append((option, "" if option in BARE else next(rest)))
    return found


def values(command_line: Sequence[str], option: str) -> list[str]:
    """List the values of one option."""
    return [value for name, value in options(command_line) if name == option]


def devices(command_line: Sequence[str], option: str = "-device") -> dict[str, dict[str, object]]:
    """Decode the JSON values of one option, by id."""
    decoded = [json.loads(value) for value in values(command_line, option)]
    return {entry.get("id") or entry["node-name"]: entry for entry in decoded}


def undouble(value: str) -> Mapping[str, str]:
    """Split `key=value,...` as QEMU does. Source: util/qemu-option.c."""
    parts: list[str] = [""]
    index = 0
    while index < len(value):
        if value[index : index + 2] == ",,":
            parts[-1] += ","
            index += 2
        elif value[index] == ",":
            parts.append("")
            index += 1
        else:
            parts[-1] += value[index]
            index += 1
    return {key: word for key, _, word in (part.partition("=") for part in parts)}


def test_the_full_sample_becomes_this_command_line() -> None:
    command_line = build(pinned(FULL))

    assert options(command_line)[:23] == [
        ("-name", "guest=web,debug-threads=on"),
        ("-uuid", "6f8d3a52-3f0b-4b43-9a5e-2f3c56a1b7d0"),
        ("-nodefaults", ""),
        ("-no-user-config", ""),
        ("-display", "none"),
        ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        ("-chardev", "socket,id=qmp0,fd=9,server=on,wait=off"),
        ("-mon", "chardev=qmp0,mode=control"),
        ("-machine", "pc-q35-7.2,usb=off,acpi=on,hpet=off,smm=off,vmport=off"),
        ("-accel", "tcg"),
        ("-cpu", "Nehalem,lahf-lm=on,pclmulqdq=off,pmu=off,enforce=on"),
        ("-m", "524288k"),
        ("-smp", "4,sockets=2,dies=1,cores=2,threads=1"),
        ("-rtc", "base=utc,driftfix=slew"),
        ("-global", "kvm-pit.lost_tick_policy=delay"),
        ("-global", "ICH9-LPC.disable_s3=1"),
        ("-global", "ICH9-LPC.disable_s4=0"),
        ("-boot", "strict=on"),
        ("-action", "reboot=shutdown"),
        ("-kernel", "/boot/vmlinuz"),
        ("-initrd", "/boot/initrd"),
        ("-append", "console=ttyS0 a,b=c"),
        ("-netdev", '{"type":"user","id":"host-net0"}'),
    ]


def test_devices_of_the_full_sample_have_names_and_addresses() -> None:
    command_line = build(pinned(FULL))

    found = devices(command_line)

    assert {name: entry.get("addr") for name, entry in found.items()} == {
        "net0": "0x1.0x0",
        "net1": "0x2.0x0",
        "net2": "0x3.0x0",
        "virtio-serial0": "0x4.0x0",
        "console0": None,
        "disk-vda": "0x5.0x0",
        "disk-vdb": "0x8.0x0",
        "serial0": None,
        "serial1": None,
        "balloon0": "0x6.0x0",
        "rng0": "0x7.0x0",
        "rng1": "0x9.0x0",
    }
    assert found["disk-vda"]["bootindex"] == 2
    assert found["disk-vda"]["serial"] == "WD-1 2"
    assert found["console0"]["bus"] == "virtio-serial0.0"


def test_each_disk_has_a_file_node_and_a_format_node() -> None:
    nodes = devices(build(pinned(FULL)), "-blockdev")

    assert nodes["vda-file"] == {
        "driver": "file",
        "node-name": "vda-file",
        "filename": "/srv/web,1.qcow2",
        "aio": "native",
        "read-only": False,
        "cache": {"direct": True, "no-flush": False},
        "discard": "unmap",
    }
    assert nodes["vda"]["driver"] == "qcow2"
    assert nodes["vda"]["file"] == "vda-file"
    assert nodes["vdb"] == {"driver": "raw", "node-name": "vdb", "file": "vdb-file", "read-only": True}


def test_taps_are_descriptors() -> None:
    backends = devices(build(pinned(FULL)), "-netdev")

    assert backends["host-net1"] == {"type": "tap", "id": "host-net1", "fd": "21"}


def test_the_same_definition_gives_the_same_command_line() -> None:
    assert build(pinned(FULL)) == build(pinned(FULL))


def test_an_incoming_qemu_waits_and_differs_in_nothing_else() -> None:
    definition = pinned(FULL)

    assert build(definition, is_incoming=True, qmp_fd=9) == (*build(definition), "-incoming", "defer", "-S")


def test_a_paused_start_only_adds_the_switch() -> None:
    definition = pinned(FULL)

    assert build(definition, starts_paused=True) == (*build(definition), "-S")


@pytest.mark.parametrize("kib", [16392, 262152, 524296])
def test_memory_is_given_to_the_kib(kib: int) -> None:
    assert values(build(pinned(domain(memory=f"<memory>{kib}</memory>"))), "-m") == [f"{kib}k"]


@pytest.mark.parametrize(
    ("mode", "accelerator", "model"),
    [
        (CpuMode.HOST_PASSTHROUGH, Accelerator.KVM, "host"),
        (CpuMode.HOST_MODEL, Accelerator.KVM, "host"),
        (CpuMode.HOST_PASSTHROUGH, Accelerator.TCG, "max"),
        (CpuMode.MAXIMUM, Accelerator.KVM, "max"),
    ],
)
def test_cpu_modes_become_models_of_the_accelerator(mode: CpuMode, accelerator: Accelerator, model: str) -> None:
    definition = pinned(domain(kind="kvm", inside=f"<cpu mode='{mode.value}' migratable='on'/>"))

    command_line = build(definition, accelerator=accelerator)

    assert values(command_line, "-cpu") == [f"{model},migratable=on"]
    assert values(command_line, "-accel") == [accelerator.value]


@pytest.mark.parametrize(
    ("cache", "direct", "no_flush", "write_cache"),
    [
        ("none", True, False, "on"),
        ("writeback", False, False, "on"),
        ("writethrough", False, False, "off"),
        ("directsync", True, False, "off"),
        ("unsafe", False, True, "on"),
    ],
)
def test_cache_modes_are_spelt_out(cache: str, direct: bool, no_flush: bool, write_cache: str) -> None:  # noqa: FBT001
    disk = f"<disk type='file'><driver cache='{cache}'/><source file='/a'/><target dev='vda'/></disk>"

    command_line = build(pinned(domain(devices=disk)))

    assert devices(command_line, "-blockdev")["vda"]["cache"] == {"direct": direct, "no-flush": no_flush}
    assert devices(command_line)["disk-vda"]["write-cache"] == write_cache


def test_a_bios_image_takes_the_place_of_qemus() -> None:
    xml = domain().replace("</os>", "<loader type='rom' readonly='yes'>/usr/share/x.bin</loader></os>")

    assert values(build(pinned(xml)), "-bios") == ["/usr/share/x.bin"]


_TEXT = st.text(
    st.one_of(st.sampled_from(",=-/.'\"{}\\%:; "), st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])),
    min_size=1,
    max_size=30,
).filter(str.isprintable)


@given(_TEXT.filter(lambda text: text == text.strip() and "/" not in text))
def test_no_name_becomes_an_option(name: str) -> None:
    definition = replace(pinned(domain()), name=name)

    (value,) = values(build(definition), "-name")

    assert undouble(value) == {"guest": name, "debug-threads": "on"}


@given(_TEXT)
def test_no_kernel_command_line_becomes_an_option(cmdline: str) -> None:
    definition = pinned(FULL)
    definition = replace(definition, boot=replace(definition.boot, cmdline=cmdline))

    assert values(build(definition), "-append") == [cmdline]


_PATHS = (
    _TEXT.map(lambda text: "/" + text.lstrip("/"))
    .filter(lambda path: len(path) > 1 and not path.endswith("/"))
    .filter(lambda path: ".." not in path.split("/"))
)


@given(_PATHS)
def test_no_path_of_a_disk_becomes_an_option(path: str) -> None:
    definition = pinned(FULL)
    definition = replace(definition, disks=(replace(definition.disks[0], path=path),))

    assert devices(build(definition), "-blockdev")["vda-file"]["filename"] == path


@given(_PATHS, st.sampled_from([ChardevKind.FILE, ChardevKind.UNIX_LISTEN, ChardevKind.UNIX_CONNECT]))
def test_no_path_of_a_serial_line_becomes_an_option(path: str, kind: ChardevKind) -> None:
    definition = replace(pinned(domain()), serials=(Serial(0, Chardev(kind, path, appends=False)),))

    value = values(build(definition), "-chardev")[1]

    expected = {"id": "char-serial0", "path": path}
    assert {key: word for key, word in undouble(value).items() if key in expected} == expected
    assert set(undouble(value)) <= {"file", "socket", "id", "path", "append", "server", "wait"}
