"""Definitions become command lines, and nothing in them becomes an option."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.vm import argv
from agent.vm.definition import Accelerator, CpuMode
from agent.vm.display_port import FIRST_PORT, find_spice_port
from agent.vm.options import keyval, of_json, text
from tests.unit.agent.vm.samples import FULL, NOTHING, domain, pinned

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.vm.definition import Definition

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
        "-audiodev",
    ]
)


def build(definition: Definition, **changes: object) -> tuple[str, ...]:
    """Build a command line for a host like any other."""
    taps = {tap.netdev: argv.TapFds([20 + index], [30 + index]) for index, tap in enumerate(definition.taps)}
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

    assert options(command_line)[:22] == [
        ("-name", "guest=web,debug-threads=on"),
        ("-no-user-config", ""),
        ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        ("-chardev", "socket,id=qmp0,fd=9,server=on,wait=off"),
        ("-mon", "chardev=qmp0,mode=control"),
        ("-machine", "pc-q35-7.2,usb=off,dump-guest-core=off,hpet=off,smm=off,vmport=off"),
        ("-accel", "tcg"),
        ("-cpu", "Nehalem,lahf-lm=on,pclmulqdq=off,pmu=off"),
        ("-m", "size=524288k"),
        ("-smp", "4,sockets=2,dies=1,cores=2,threads=1"),
        ("-uuid", "6f8d3a52-3f0b-4b43-9a5e-2f3c56a1b7d0"),
        ("-nodefaults", ""),
        ("-action", "reboot=shutdown"),
        ("-rtc", "base=utc,driftfix=slew"),
        ("-global", "kvm-pit.lost_tick_policy=delay"),
        ("-global", "ICH9-LPC.disable_s3=1"),
        ("-global", "ICH9-LPC.disable_s4=0"),
        ("-boot", "strict=on"),
        ("-kernel", "/boot/vmlinuz"),
        ("-initrd", "/boot/initrd"),
        ("-append", "console=ttyS0 a,b=c"),
        ("-audiodev", '{"id":"audio1","driver":"none"}'),
    ]


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

    assert backends["hostnet1"] == {"type": "tap", "id": "hostnet1", "fd": "20"}


def test_queues_and_vhost_are_descriptors_too() -> None:
    card = "<interface type='bridge'><source bridge='b'/><model type='virtio'/><driver name='vhost' queues='2'/></interface>"
    definition = pinned(domain(devices=NOTHING + card))

    command_line = build(definition, tap_fds={"hostnet0": argv.TapFds([5, 6], [7, 8])})

    assert devices(command_line, "-netdev")["hostnet0"] == {
        "type": "tap", "id": "hostnet0", "fds": "5:6", "vhost": True, "vhostfds": "7:8",
    }  # fmt: skip
    assert devices(command_line)["net0"]["mq"] is True


def test_sockets_of_the_vm_lie_in_its_own_directory() -> None:
    channel = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"

    command_line = build(pinned(domain(devices=channel)), run_dir="/run/x")

    assert values(command_line, "-chardev")[1] == "socket,id=charchannel0,path=/run/x/channel0.sock,server=on,wait=off"


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
    assert values(build(pinned(domain(memory=f"<memory>{kib}</memory>"))), "-m") == [f"size={kib}k"]


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
    assert devices(command_line)["virtio-disk0"]["write-cache"] == write_cache


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
    definition = replace(pinned(domain()), options=(text("append", cmdline),))

    assert values(build(definition), "-append") == [cmdline]


_PATHS = (
    _TEXT.map(lambda text: "/" + text.lstrip("/"))
    .filter(lambda path: len(path) > 1 and not path.endswith("/"))
    .filter(lambda path: ".." not in path.split("/"))
)


@given(_PATHS)
def test_no_path_of_a_disk_becomes_an_option(path: str) -> None:
    node = of_json("blockdev", {"driver": "file", "node-name": "n", "filename": path})

    assert devices(build(replace(pinned(domain()), options=(node,))), "-blockdev")["n"]["filename"] == path


@given(_PATHS, st.sampled_from(["file", "socket"]))
def test_no_path_of_a_serial_line_becomes_an_option(path: str, backend: str) -> None:
    line = keyval("chardev", {"backend": backend, "id": "charserial0", "path": path})

    value = values(build(replace(pinned(domain()), options=(line,))), "-chardev")[1]

    assert undouble(value) == {backend: "", "id": "charserial0", "path": path}


def test_the_port_of_a_display_is_the_hosts_choice_at_each_start() -> None:
    definition = pinned(domain(devices="<graphics type='spice' autoport='yes'/>"))

    first = find_spice_port(definition)
    with socket.create_server(("127.0.0.1", first)):
        second = find_spice_port(definition)

    assert second > first >= FIRST_PORT
    assert f"port={second},addr=127.0.0.1,disable-ticketing=on,seamless-migration=on" in build(definition, spice_port=second)


def test_a_model_is_enforced_where_its_check_can_hold() -> None:
    def words(kind: str, check: str, accelerator: Accelerator) -> str:
        xml = domain(kind=kind, inside=f"<cpu check='{check}'><model>Nehalem</model></cpu>")
        return argv.cpu_words(pinned(xml), accelerator)

    assert words("kvm", "partial", Accelerator.KVM) == words("kvm", "full", Accelerator.KVM) == "Nehalem,enforce=on"
    assert words("kvm", "full", Accelerator.TCG) == words("qemu", "partial", Accelerator.TCG) == "Nehalem"
    assert words("qemu", "full", Accelerator.TCG) == "Nehalem,enforce=on"


def test_what_stops_qemu_under_tcg_is_left_out_where_kvm_was_wished_and_is_not_there() -> None:
    hyperv = "<features><hyperv><relaxed state='on'/><vpindex state='on'/><synic state='on'/></hyperv></features>"
    definition = pinned(domain(kind="kvm", features=hyperv))

    assert argv.cpu_words(definition, Accelerator.TCG) == "qemu64,hv-relaxed=on"
    assert argv.cpu_words(definition, Accelerator.KVM) == "qemu64,hv-relaxed=on,hv-vpindex=on,hv-synic=on"
