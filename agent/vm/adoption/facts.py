"""What a running QEMU says of itself: the truth where its command line is only the beginning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agent.qemu.commands import Qemu
from agent.qemu.decoding import as_list, as_mapping, as_str, find_bool, find_str, get_int, get_str
from agent.qemu.errors import QemuRefused
from agent.qemu.status import RunState
from agent.vm.definition import Accelerator
from common.errors import WrongState

_KIB: Final = 1024
_PERIPHERAL: Final = "/machine/peripheral"
_ANONYMOUS: Final = "/machine/peripheral-anon"
_CHILD: Final = re.compile(r"child<(.+)>")
_USB_LINE: Final = re.compile(r"Port (?P<port>[\d.]+),.*ID: (?P<id>\S+)")
_NOT_AT_REST: Final = frozenset(
    {RunState.INMIGRATE, RunState.POSTMIGRATE, RunState.FINISH_MIGRATE, RunState.SAVE_VM, RunState.RESTORE_VM, RunState.COLO}
)
# What tells where a device is, or which one of its kind; pinned for every device.
PLACES: Final = ("addr", "channel", "scsi-id", "lun", "unit", "nr", "mac", "memaddr", "slot", "node")
# What people choose of a device; asked of plugged ones, whose arguments are told nowhere.
CHOICES: Final = (
    *("drive", "netdev", "chardev", "iothread", "memdev", "rng", "audiodev", "fsdev", "name", "serial", "wwn", "vendor", "product"),
    *("ver", "device_id", "bootindex", "share-rw", "write-cache", "logical_block_size", "physical_block_size", "min_io_size"),
    *("opt_io_size", "discard_granularity", "num-queues", "queue-size", "num_queues", "config-wce", "removable", "rotation_rate"),
    *("mq", "rx_queue_size", "tx_queue_size", "host_mtu", "speed", "duplex", "vectors", "multifunction", "chassis", "chassis_nr"),
    *("port", "hotplug", "io-reserve", "mem-reserve", "pref64-reserve", "bus-reserve", "iommu_platform", "packed", "ats"),
    *("disable-modern", "max_ports", "max-bytes", "period", "werror", "rerror", "discard", "write-zeroes", "deflate-on-oom"),
    *("free-page-reporting", "block-size", "requested-size"),
    *("p2", "p3", "usb_version", "streams", "head", "max_outputs", "xres", "yres", "edid", "guest-cid", "host"),
)


@dataclass(frozen=True, slots=True)
class Device:
    """A device that an option or a command made; `properties` are those of PLACES and CHOICES that say something."""

    path: str
    id: str
    driver: str
    bus: str
    owner: str
    is_hotplugged: bool
    properties: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Block:
    """A block backend that an option made: its name, and the image in it, None when it is empty."""

    name: str
    file: str | None
    driver: str
    is_read_only: bool


@dataclass(frozen=True, slots=True)
class Node:
    """A block node with a name: `children` by their role, as `file` and `backing`."""

    name: str
    driver: str
    file: str
    is_read_only: bool
    cache: Mapping[str, object]
    detect_zeroes: str
    children: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Facts:
    """One running QEMU; `built_in` are the types of devices that the board made by itself, `network` HMP's `info network`."""

    machine: str
    name: str | None
    uuid: str | None
    accelerator: Accelerator
    cpu_model: str
    memory_kib: int
    memory_slots: tuple[int, int] | None
    current_memory_kib: int
    smp: Mapping[str, int]
    devices: tuple[Device, ...]
    built_in: frozenset[str]
    objects: Mapping[str, Mapping[str, object]]
    blocks: tuple[Block, ...]
    nodes: Mapping[str, Node]
    network: str


async def ask_facts(qemu: Qemu) -> Facts:
    """Ask a QEMU what it runs.

    Raises:
        WrongState: it is in the middle of a migration or has a job.
    """
    await _check_rest(qemu)
    survey = _Survey(qemu)
    memory = await qemu.query_memory_size()
    machine_memory = as_mapping(await survey.get("/machine", "memory"), "memory")
    uuid = await qemu.query_uuid()
    cpus = as_list(await qemu.monitor.execute("query-cpus-fast"), "query-cpus-fast")
    first_cpu = get_str(as_mapping(cpus[0], "vCPU"), "qom-path")
    smp = as_mapping(await survey.get("/machine", "smp"), "smp")
    kvm = as_mapping(await qemu.monitor.execute("query-kvm"), "query-kvm")
    base_kib = memory.base_bytes // _KIB
    slots = machine_memory.get("slots")
    return Facts(
        machine=await qemu.machine_type(),
        name=await qemu.query_name(),
        uuid=None if not uuid.strip("0-") else uuid,
        accelerator=Accelerator.KVM if find_bool(kvm, "enabled") else Accelerator.TCG,
        cpu_model=re.sub(r"-(x86_64|i386)-cpu$", "", as_str(await survey.get(first_cpu, "type"), "type")),
        memory_kib=base_kib,
        memory_slots=(int(str(slots)), get_int(machine_memory, "max-size") // _KIB) if slots else None,
        current_memory_kib=await survey.balloon_kib(base_kib),
        smp={key: value for key, value in smp.items() if isinstance(value, int)},
        devices=await survey.devices(),
        built_in=frozenset((await survey.children("/machine/unattached")).values()),
        objects=await survey.objects(),
        blocks=await survey.blocks(),
        nodes=await survey.nodes(),
        network=await survey.hmp("info network"),
    )


async def _check_rest(qemu: Qemu) -> None:
    state = await qemu.query_status()
    if state in _NOT_AT_REST:
        raise WrongState(f"QEMU is in state {state.value}: it can be adopted when its migration is over", reason="QEMU_NOT_AT_REST")
    jobs = as_list(await qemu.monitor.execute("query-jobs"), "query-jobs")
    if jobs:
        job = get_str(as_mapping(jobs[0], "job"), "id")
        raise WrongState(f"QEMU has the block job {job}: end or dismiss it first", reason="QEMU_NOT_AT_REST", job=job)


class _Survey:
    """Questions to one QEMU."""

    def __init__(self, qemu: Qemu) -> None:
        self._qemu = qemu
        self._cpus: dict[str, Mapping[str, object]] = {}

    async def get(self, path: str, name: str) -> object:
        return await self._qemu.monitor.execute("qom-get", {"path": path, "property": name})

    async def hmp(self, command: str) -> str:
        return str(await self._qemu.monitor.execute("human-monitor-command", {"command-line": command}))

    async def children(self, path: str) -> dict[str, str]:
        found = {}
        for name, kind in (await self._properties(path)).items():
            if match := _CHILD.fullmatch(kind):
                found[name] = match[1]
        return found

    async def balloon_kib(self, memory_kib: int) -> int:
        try:
            reply = as_mapping(await self._qemu.monitor.execute("query-balloon"), "query-balloon")
        except QemuRefused:
            return memory_kib
        return max(1024, min(get_int(reply, "actual") // _KIB, memory_kib))

    async def devices(self) -> tuple[Device, ...]:
        ports = {match["id"]: match["port"] for match in _USB_LINE.finditer(await self.hmp("info usb"))}
        self._cpus = await self._cpu_places()
        found = []
        for parent in (_PERIPHERAL, _ANONYMOUS):
            for name, kind in sorted((await self.children(parent)).items(), key=lambda item: _number(item[0])):
                found.append(await self._device(f"{parent}/{name}", "" if parent == _ANONYMOUS else name, kind, ports))
        return tuple(found)

    async def _device(self, path: str, identifier: str, driver: str, ports: Mapping[str, str]) -> Device:
        kinds = await self._properties(path)
        is_hotplugged = bool(await self.get(path, "hotplugged"))
        bus = as_str(await self.get(path, "parent_bus"), "parent_bus") if "parent_bus" in kinds else ""
        wanted = [name for name in (*PLACES, *(CHOICES if is_hotplugged else ("drive", "netdev", "share-rw"))) if name in kinds]
        defaults = await self._defaults(driver) if is_hotplugged else {}
        properties: dict[str, object] = {}
        for name in wanted:
            value = await self.get(path, name)
            if isinstance(value, str | int) and value != "" and (name in PLACES or value != defaults.get(name)):
                properties[name] = value
        if identifier in ports:
            properties["port"] = ports[identifier]
        if path in self._cpus:
            properties = {key: value for key, value in self._cpus[path].items() if key != "node-id"}
        owner, _, name = bus.rpartition("/")
        return Device(
            path,
            identifier,
            driver,
            "" if name == "sysbus" or "main-system-bus" in name else name,
            owner,
            is_hotplugged,
            properties,
        )

    async def _cpu_places(self) -> dict[str, Mapping[str, object]]:
        """Say where each vCPU sits, in the words that this machine type knows; empty where none can be plugged."""
        try:
            reply = await self._qemu.monitor.execute("query-hotpluggable-cpus")
        except QemuRefused:
            return {}
        entries = _mappings(reply)
        return {get_str(entry, "qom-path"): as_mapping(entry["props"], "props") for entry in entries if "qom-path" in entry}

    async def _defaults(self, driver: str) -> dict[str, object]:
        reply = as_list(await self._qemu.monitor.execute("device-list-properties", {"typename": driver}), "properties")
        entries = [as_mapping(entry, "property") for entry in reply]
        return {get_str(entry, "name"): entry.get("default-value") for entry in entries}

    async def _properties(self, path: str) -> dict[str, str]:
        reply = as_list(await self._qemu.monitor.execute("qom-list", {"path": path}), "qom-list")
        entries = [as_mapping(entry, "property") for entry in reply]
        return {get_str(entry, "name"): get_str(entry, "type") for entry in entries}

    async def objects(self) -> dict[str, Mapping[str, object]]:
        found: dict[str, Mapping[str, object]] = {}
        for name, kind in (await self.children("/objects")).items():
            values: dict[str, object] = {"qom-type": kind}
            for wanted in ("size", "mem-path", "share", "filename"):
                if wanted in await self._properties(f"/objects/{name}"):
                    values[wanted] = await self.get(f"/objects/{name}", wanted)
            found[name] = values
        return found

    async def blocks(self) -> tuple[Block, ...]:
        found = []
        for entry in as_list(await self._qemu.monitor.execute("query-block"), "query-block"):
            block = as_mapping(entry, "block")
            inserted = block.get("inserted")
            name = get_str(block, "device")
            if not name:
                continue
            if inserted is None:
                found.append(Block(name, None, "", is_read_only=False))
            else:
                medium = as_mapping(inserted, "inserted")
                found.append(
                    Block(name, get_str(medium, "file"), get_str(medium, "drv"), is_read_only=bool(find_bool(medium, "ro")))
                )
        return tuple(found)

    async def nodes(self) -> dict[str, Node]:
        graph = as_mapping(await self._qemu.monitor.execute("x-debug-query-block-graph"), "block graph")
        names = {get_int(entry, "id"): get_str(entry, "name") for entry in _mappings(graph["nodes"])}
        children: dict[str, dict[str, str]] = {}
        for edge in _mappings(graph["edges"]):
            children.setdefault(names[get_int(edge, "parent")], {})[get_str(edge, "name")] = names[get_int(edge, "child")]
        found = {}
        reply = await self._qemu.monitor.execute("query-named-block-nodes", {"flat": True})
        for node in _mappings(reply):
            name = get_str(node, "node-name")
            found[name] = Node(
                name=name,
                driver=get_str(node, "drv"),
                file=get_str(node, "file"),
                is_read_only=bool(find_bool(node, "ro")),
                cache=as_mapping(node.get("cache", {}), "cache"),
                detect_zeroes=find_str(node, "detect_zeroes") or "off",
                children=children.get(name, {}),
            )
        return found


def _mappings(value: object) -> list[Mapping[str, object]]:
    return [as_mapping(entry, "entry") for entry in as_list(value, "list")]


def _number(name: str) -> tuple[int, str]:
    digits = re.sub(r"\D", "", name)
    return (int(digits) if name.startswith("device[") and digits else 0, name)
