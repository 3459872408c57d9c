"""Real domains with libvirt's own command line for each: Ferry's means the same, QEMU takes it, or an element is named.

The domains are libvirt's test data (LGPL) and not part of this project: FERRY_LIBVIRT_DOMAINS names their directory.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.vm import argv
from agent.vm.definition import Accelerator
from agent.vm.domain.parse import parse_domain
from agent.vm.options import Option, of_json
from common.errors import InvalidRequest
from tests.binaries import BINARIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.vm.definition import Definition

PLACE = Path(os.environ.get("FERRY_LIBVIRT_DOMAINS", Path(__file__).parents[3] / "shared" / "libvirt-domains"))
DOMAINS = sorted(PLACE.glob("*.xml"))
LEAST_BUILT = 0.75
REFUSAL = re.compile(r"[\w.-]+\.xml:[1-9][0-9]*: /domain")
START_TIMEOUT_S = 20.0
# Names that a program chooses, what hangs on the host of libvirt's tests, and what libvirt chooses by chance.
_NAMES = frozenset({"id", "drive", "netdev", "chardev", "rng", "memdev", "audiodev", "fsdev", "vhostfd", "device_id", "iothread"})
_CHOSEN = {"vhost-vsock-auto": "guest-cid", "genid-auto": "guid"}
# Stand-ins for devices that a test host has not.
_ABSENT = (
    "vfio-pci",
    "vhost-user-blk-pci",
    "virtio-vga-gl",
    "virtio-gpu-gl",
    "usb-host",
    "virtio-input-host-pci",
    "vhost-vsock-pci",
    "vhost-scsi-pci",
)
_STORAGE = frozenset({"file", "host_device", "host_cdrom", "nbd", "rbd", "iscsi", "gluster", "http", "https", "ftp", "ftps", "nfs"})
_OF_SPICE = frozenset({"tls-port", "x509-dir", "tls-channel", "gl", "rendernode"})
_NEEDS_KVM = frozenset({"intel-iommu-eim"})  # more CPUs than a machine without KVM's interrupt controller takes
_MISSING = pytest.mark.skipif(not DOMAINS, reason=f"no libvirt domains in {PLACE}")


@dataclass(frozen=True)
class Outcome:
    """What became of a domain: a definition, or what was said."""

    definition: Definition | None
    refusal: str


def read(path: Path) -> Outcome:
    """Parse a domain; anything but a refusal is raised."""
    try:
        return Outcome(parse_domain(path.read_bytes(), path.name), "")
    except InvalidRequest as error:
        return Outcome(None, error.text)


def command_line(definition: Definition) -> tuple[str, ...]:
    """Build it as for a host."""
    taps = {tap.netdev: argv.TapFds(range(10, 10 + tap.queue_count), range(50, 50 + tap.queue_count)) for tap in definition.taps}
    return argv.build(definition, argv.HostSide("qemu", Accelerator.TCG, 3, tap_fds=taps))


def libvirts(path: Path) -> list[str]:
    """Read libvirt's command line."""
    words = shlex.split(path.with_suffix(".args").read_text(encoding="utf-8").replace("\\\n", " "))
    return words[next(index for index, word in enumerate(words) if "qemu-system" in word) + 1 :]


def devices(words: Sequence[str], name: str) -> Counter[str]:
    """Give each device with what the guest can see of it."""
    ignored = {*_NAMES, _CHOSEN.get(name)}
    found: Counter[str] = Counter()
    for option, value in pairwise(words):
        if option == "-device":
            properties = {key: str(word) for key, word in json.loads(value).items() if key not in ignored}
            found[json.dumps(properties, sort_keys=True)] += 1
    return found


def machine(words: Sequence[str], option: str) -> set[str]:
    """Split `-machine` or `-cpu` into words, without what is named otherwise."""
    value = words[words.index(option) + 1]
    split = {word.removesuffix("=on") for word in value.split(",")}
    return {word for word in split if not word.startswith(("memory-backend=", "pflash", "acpi=", "usb="))}


@_MISSING
def test_most_domains_are_built_and_every_other_names_its_element() -> None:
    outcomes = [read(path) for path in DOMAINS]

    refusals = [outcome.refusal for outcome in outcomes if outcome.definition is None]
    assert len(refusals) <= (1 - LEAST_BUILT) * len(DOMAINS)
    assert [refusal for refusal in refusals if not REFUSAL.match(refusal)] == []


@pytest.mark.parametrize("path", DOMAINS, ids=lambda path: path.stem)
def test_what_the_guest_sees_is_what_libvirt_gives_it(path: Path) -> None:
    definition = read(path).definition
    if definition is None:
        return
    ours, theirs = command_line(definition), libvirts(path)

    assert devices(ours, path.stem) == devices(theirs, path.stem)
    assert machine(ours, "-machine") == machine(theirs, "-machine")
    if definition.cpu.model is not None:
        assert machine(ours, "-cpu") == machine(theirs, "-cpu")
    assert ("-no-acpi" in theirs) is not definition.has_acpi
    for option in ("-boot", "-smp", "-watchdog-action", "-global", "-rtc"):
        assert words_of(ours, option) == words_of(theirs, option)


def words_of(words: Sequence[str], option: str) -> list[str]:
    """List the values of an option that is written alike."""
    return sorted(value for name, value in pairwise(words) if name == option)


def with_stand_ins(definition: Definition, place: Path) -> Definition:
    """Put small files of this test in the place of files, and simple devices in that of devices of the host."""
    formats = {option.get("file"): option.get("driver").replace("luks", "raw") for option in definition.find("blockdev")}
    return replace(
        definition,
        options=tuple(_stand_in(option, place, formats) for option in definition.options),
        taps=(),
        accelerator=Accelerator.TCG,
    )


def _stand_in(option: Option, place: Path, formats: dict[str, str]) -> Option:
    match option.name:
        case "blockdev" if option.get("driver") in _STORAGE:
            node = option.get("node-name")
            path = _make_image(place / f"{node}.img", formats.get(node, "raw"))
            return of_json("blockdev", {"driver": "file", "filename": str(path)} | _kept(option, "node-name", "read-only", "cache"))
        case "blockdev" if option.get("driver") == "luks" or "encrypt" in option.properties:
            return replace(option, properties={"driver": "raw"} | _kept(option, "node-name", "read-only", "file", "cache"))
        case "object":
            return _object(option, place)
        case "device":
            return _device(option)
        case _:
            return _desktop(option, place)


def _desktop(option: Option, place: Path) -> Option:
    match option.name:
        case "spice" if option.properties.keys() & {"tls-port", "gl"}:
            return replace(option, properties={key: value for key, value in option.properties.items() if key not in _OF_SPICE})
        case "display" if option.properties:
            return replace(option, properties={"type": "none"})
        case "audiodev" if option.get("driver") not in ("none", "wav", "spice"):
            return of_json("audiodev", {"driver": "none"} | _kept(option, "id"))
        case _:
            return _host_side(option, place)


def _host_side(option: Option, place: Path) -> Option:
    match option.name:
        case "netdev":
            return of_json("netdev", {"type": "user"} | _kept(option, "id"))
        case "chardev" if "path" in option.properties or "port" in option.properties:
            return replace(option, properties={"backend": "null"} | _kept(option, "id"))
        case "spice" if option.get("unix") == "on":
            return replace(option, properties=option.properties | {"addr": f"{place}/spice"})
        case "fsdev":
            return replace(option, properties=option.properties | {"path": str(place)})
        case "vnc" if option.get("vnc") != "none":
            return replace(option, properties={"vnc": f"unix:{place}/vnc"} | _kept(option, "audiodev", "share"))
        case _:
            return option


def _kept(option: Option, *keys: str) -> dict[str, object]:
    return {key: value for key, value in option.properties.items() if key in keys}


def _object(option: Option, place: Path) -> Option:
    if "mem-path" in option.properties:
        found = {"qom-type": "memory-backend-file", "mem-path": str(place / option.get("id"))}
        return of_json("object", found | _kept(option, "id", "size", "share", "align"))
    if option.get("qom-type") == "memory-backend-ram":
        return of_json("object", {"qom-type": "memory-backend-ram", "reserve": False} | _kept(option, "id", "size", "share"))
    if option.get("qom-type") == "memory-backend-memfd":
        return of_json("object", {"qom-type": "memory-backend-memfd"} | _kept(option, "id", "size", "share"))
    if option.get("qom-type") in ("input-linux", "secret"):
        return of_json("object", {"qom-type": "rng-builtin"} | _kept(option, "id"))
    return option


def _device(option: Option) -> Option:
    if not option.get("driver").startswith((*_ABSENT, "scsi-block")):
        return of_json("device", {key: value for key, value in option.properties.items() if key != "prealloc"})
    if option.get("driver").startswith(("virtio-vga-gl", "virtio-gpu-gl")):
        return of_json("device", option.properties | {"driver": option.get("driver").replace("-gl", "")})
    if option.get("driver") == "scsi-block":
        return of_json("device", option.properties | {"driver": "scsi-hd"})
    if option.get("driver") == "usb-host":
        return of_json("device", {"driver": "usb-mouse"})
    return of_json("device", {"driver": "pci-testdev"} | _kept(option, "bus", "addr"))


def _make_image(path: Path, image_format: str) -> Path:
    if not path.exists():
        size = "64M" if "pflash" not in path.name else "256K"
        arguments = ("qemu-img", "create", "-q", "-f", image_format, str(path), size)
        assert os.spawnvp(os.P_WAIT, arguments[0], arguments) == 0
    return path


async def complaint(definition: Definition, binary: Path) -> str:
    """Start QEMU with the vCPUs stopped and let it quit; returns what it said when it refused."""
    host = argv.HostSide(str(binary), Accelerator.TCG, 0, starts_paused=True)
    words = [word for word in argv.build(definition, host) if word != "-no-user-config"]
    at = words.index("-mon")
    del words[at - 2 : at + 2]  # the test talks on stdio
    words[words.index("-accel") + 1] = "tcg,tb-size=32"  # where memory is locked, that of the translator is too
    process = await asyncio.create_subprocess_exec(
        *words, "-qmp", "stdio", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(START_TIMEOUT_S):
        _, said = await process.communicate(b'{"execute":"qmp_capabilities"}{"execute":"quit"}')
    return "" if process.returncode == 0 else said.decode(errors="replace")


@pytest.mark.parametrize("path", DOMAINS, ids=lambda path: path.stem)
async def test_qemu_starts_what_is_built(path: Path, tmp_path: Path) -> None:
    definition = read(path).definition
    if definition is None or path.stem in _NEEDS_KVM:
        return

    assert await complaint(with_stand_ins(definition, tmp_path), BINARIES["7.2"]) == ""
