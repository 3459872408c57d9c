"""`<memory>` devices: DIMMs, NVDIMMs and virtio memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from agent.vm.domain.addresses import read_alias, read_pci_address
from agent.vm.domain.backing import KIB, HugePages, make_backend, read_kib, read_set
from agent.vm.domain.memory import MIB_KIB, rounded_up
from agent.vm.domain.plan import Device
from agent.vm.domain.virtio import slot_of
from agent.vm.options import of_json

if TYPE_CHECKING:
    from agent.vm.domain.backing import Backing
    from agent.vm.domain.plan import Plan
    from agent.vm.domain.reader import Element

_MODELS: Final = {"dimm": "pc-dimm", "nvdimm": "nvdimm", "virtio-mem": "virtio-mem-pci"}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a module's memory is from: page size, nodes of the host, a file, and properties of that file."""

    page_kib: int | None
    nodes: tuple[int, ...] | None
    path: str | None
    extra: dict[str, object]


@dataclass(frozen=True, slots=True)
class Target:
    """What the guest sees: size, cell, and block and requested size of virtio memory, in bytes."""

    size_kib: int
    cell: int | None
    sizes: dict[str, object]


def read_modules(devices: Element, plan: Plan, backing: Backing) -> None:
    """Read every `<memory>` device."""
    for index, element in enumerate(devices.children("memory")):
        model = element.choice("model", {name: name for name in _MODELS})
        if model is None:
            raise element.invalid("attribute model is missing")
        if model != "virtio-mem" and plan.machine_properties.get("acpi") is False:
            raise element.invalid(f"a {model} needs <acpi/> in <features>")
        own, source = _read_backing(element, backing)
        target = _read_target(element, model)
        if model == "virtio-mem":
            _add_virtio(element, index, target, own, plan)
        else:
            _add_dimm(element, (model, index), target, (own, source), plan)


def _read_backing(element: Element, backing: Backing) -> tuple[Backing, Source]:
    access = element.choice("access", {"shared": True, "private": False})
    source = _read_source(element)
    own = backing if source.nodes is None else replace(backing, policy=("bind", source.nodes), node_policies={})
    if source.path is not None:
        own = replace(own, source=None, huge_pages=[])
    if source.page_kib is not None:
        own = replace(own, huge_pages=[HugePages(source.page_kib, ())])
    if access is not None:
        own = replace(own, is_shared=access, node_shared={})
    return own, source


def _read_target(element: Element, model: str) -> Target:
    target = element.get_child("target")
    size_kib = rounded_up(read_kib(target.get_child("size")), 2 * MIB_KIB if model == "nvdimm" else MIB_KIB)
    cell = target.child_text("node")
    sizes: dict[str, object] = {}
    if model == "virtio-mem":
        for tag in ("block", "requested"):
            size = target.child(tag)
            if size is not None:
                sizes[f"{tag}-size" if tag == "block" else "requested-size"] = read_kib(size) * KIB
    target.finish()
    return Target(size_kib, None if cell is None else element.number(cell), sizes)


def _add_virtio(element: Element, index: int, target: Target, own: Backing, plan: Plan) -> None:
    name = read_alias(element, f"virtiomem{index}")
    address = read_pci_address(element)
    element.finish()
    backend = make_backend(f"mem{name}", target.size_kib, own, target.cell)
    given = {key: value for key, value in backend.properties.items() if key != "prealloc"}
    properties: dict[str, object] = {"driver": _MODELS["virtio-mem"], **target.sizes}
    if len(given) < len(backend.properties):  # the device takes its memory bit by bit
        properties["prealloc"] = True
    if target.cell is not None:
        properties["node"] = target.cell
    properties |= {"memdev": f"mem{name}", "id": name}
    before = [of_json("object", {**given, "reserve": False})]
    plan.add(Device(element, "memory", properties, slot_of(plan, ""), address, before=before))


def _add_dimm(element: Element, which: tuple[str, int], target: Target, origin: tuple[Backing, Source], plan: Plan) -> None:
    model, index = which
    own, source = origin
    slot, base = _read_dimm_address(element)
    name = read_alias(element, f"{model}{index if slot is None else slot}")
    element.finish()
    backend = make_backend(f"mem{name}", target.size_kib, own, target.cell)
    if source.path is not None:
        given = backend.properties | {"qom-type": "memory-backend-file", "mem-path": source.path}
        prealloc = {} if "pmem" in source.extra else {"prealloc": True}
        backend = of_json("object", {"share": False, **prealloc, **given, **source.extra})
    if model == "nvdimm":
        plan.machine_properties["nvdimm"] = True
    properties: dict[str, object] = {"driver": _MODELS[model]}
    numbers = {"node": target.cell, "memdev": f"mem{name}", "id": name, "slot": slot, "addr": base}
    properties |= {key: value for key, value in numbers.items() if value is not None}
    plan.add(Device(element, "memory", properties, before=[backend]))


def _read_source(element: Element) -> Source:
    source = element.child("source")
    if source is None:
        return Source(None, None, None, {})
    size = source.child("pagesize")
    page_kib = None if size is None else read_kib(size)
    nodes = source.child_text("nodemask")
    path = source.child_text("path")
    align = source.child("alignsize")
    extra: dict[str, object] = {} if align is None else {"align": read_kib(align) * KIB}
    if source.has("pmem"):
        extra["pmem"] = True
    source.finish()
    return Source(page_kib, None if nodes is None else read_set(source, nodes), path, extra)


def _read_dimm_address(element: Element) -> tuple[int | None, int | None]:
    address = element.child("address")
    if address is None:
        return None, None
    address.choice("type", {"dimm": None})
    slot, base = address.number_attribute("slot"), address.number_attribute("base")
    address.finish()
    return slot, base
