"""Memory in libvirt domain XML: its size, NUMA cells, what it is backed by, and modules that are plugged in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from agent.vm.definition import MemorySlots
from agent.vm.domain.addresses import read_alias, read_pci_address
from agent.vm.domain.plan import Board, Device, Slot
from agent.vm.options import Option, keyval, of_json

if TYPE_CHECKING:
    from agent.vm.domain.plan import Plan
    from agent.vm.domain.reader import Element

_KIB: Final = 1024
_MIB_KIB: Final = 1024
UNITS_BYTES: Final = {
    "b": 1,
    "bytes": 1,
    "KB": 1000,
    "k": _KIB,
    "KiB": _KIB,
    "MB": 1000**2,
    "M": _KIB**2,
    "MiB": _KIB**2,
    "GB": 1000**3,
    "G": _KIB**3,
    "GiB": _KIB**3,
    "TB": 1000**4,
    "T": _KIB**4,
    "TiB": _KIB**4,
}
_POLICIES: Final = {"strict": "bind", "preferred": "preferred", "interleave": "interleave"}
_DEFAULT_HUGE_KIB: Final = 2048


@dataclass(frozen=True, slots=True)
class HugePages:
    """Huge pages of one size for some NUMA cells, for all when `nodes` is empty; size 0 is the host's default."""

    size_kib: int
    nodes: tuple[int, ...]


@dataclass(slots=True)
class Backing:
    """What guest memory is made of on the host."""

    source: str | None = None
    is_shared: bool | None = None
    huge_pages: list[HugePages] = field(default_factory=list)
    is_locked: bool = False
    preallocates: bool = False
    threads: int | None = None
    discards: bool = False
    policy: tuple[str, str] | None = None
    node_policies: dict[int, tuple[str, str]] = field(default_factory=dict)
    node_shared: dict[int, bool] = field(default_factory=dict)
    node_discards: dict[int, bool] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """Whether QEMU's default memory will do."""
        return not (self.source or self.is_shared or self.huge_pages or self.preallocates or self.policy or self.discards)


@dataclass(frozen=True, slots=True)
class Memory:
    """Sizes for the definition."""

    boot_kib: int
    current_kib: int
    slots: MemorySlots | None


def read_kib(element: Element) -> int:
    """Read a size with its unit, rounded up to KiB."""
    unit_bytes = element.choice("unit", UNITS_BYTES) or _KIB
    number = element.number(element.text())
    element.finish()
    return -(-number * unit_bytes // _KIB)


def read_backing(domain: Element) -> Backing:
    """Read `<memoryBacking>` and `<numatune>`."""
    backing = Backing()
    element = domain.child("memoryBacking")
    if element is not None:
        _read_huge_pages(element, backing)
        source = element.child("source")
        if source is not None:
            backing.source = source.choice("type", {"memfd": "memfd", "anonymous": None, "file": "file"})
            source.finish()
        access = element.child("access")
        if access is not None:
            backing.is_shared = access.choice("mode", {"shared": True, "private": False})
            access.finish()
        allocation = element.child("allocation")
        if allocation is not None:
            backing.preallocates = allocation.choice("mode", {"immediate": True, "ondemand": False}) or False
            backing.threads = allocation.number_attribute("threads")
            allocation.finish()
        backing.is_locked = element.has("locked")
        backing.discards = element.has("discard")
        element.has("nosharepages")  # whether the host may merge equal pages; the guest cannot tell
        element.finish()
    if backing.source == "file":
        raise (element or domain).not_carried(value="source of type file")
    _read_tune(domain.child("numatune"), backing)
    return backing


def _read_huge_pages(element: Element, backing: Backing) -> None:
    pages = element.child("hugepages")
    if pages is None:
        return
    for page in pages.children("page"):
        unit = page.choice("unit", UNITS_BYTES) or _KIB
        size_kib = page.number(page.get_attribute("size")) * unit // _KIB
        nodes = page.attribute("nodeset")
        page.finish()
        backing.huge_pages.append(HugePages(size_kib, () if nodes is None else read_set(page, nodes)))
    if not backing.huge_pages:
        backing.huge_pages.append(HugePages(0, ()))
    pages.finish()


def _read_tune(element: Element | None, backing: Backing) -> None:
    if element is None:
        return
    memory = element.child("memory")
    if memory is not None:
        memory.accept("placement", "static")
        backing.policy = _read_policy(memory)
    for node in element.children("memnode"):
        cell = node.number(node.get_attribute("cellid"))
        backing.node_policies[cell] = _read_policy(node)
    element.finish()


def _read_policy(element: Element) -> tuple[str, str]:
    policy = element.choice("mode", _POLICIES) or "bind"
    nodes = element.get_attribute("nodeset")
    element.finish()
    read_set(element, nodes)
    return policy, nodes


def read_set(element: Element, words: str) -> tuple[int, ...]:
    """Read a set such as `0-3,^2,7`."""
    found: set[int] = set()
    for word in words.split(","):
        is_without = word.startswith("^")
        first, _, last = word.removeprefix("^").partition("-")
        low, high = element.number(first), element.number(last or first)
        if high > 4096 or low > high:
            raise element.invalid(f"{words!r} is not a set of numbers")
        numbers = range(low, high + 1)
        found = found.difference(numbers) if is_without else found.union(numbers)
    return tuple(sorted(found))


def read_memory(domain: Element, cpu: Element | None, plan: Plan, backing: Backing) -> Memory:
    """Read the sizes, and make the objects and NUMA cells of the guest's memory."""
    total_kib = read_kib(domain.get_child("memory"))
    current = domain.child("currentMemory")
    current_kib = total_kib if current is None else read_kib(current)
    slots = _read_slots(domain.child("maxMemory"))
    numa = None if cpu is None else cpu.child("numa")
    boot_kib = total_kib
    if numa is not None:
        boot_kib = _read_cells(numa, plan, backing)
    elif not backing.is_plain:
        plan.head.append(_backend("pc.ram", total_kib, backing, None))
        plan.machine_properties["memory-backend"] = "pc.ram"
    if backing.is_locked:
        plan.head.append(keyval("overcommit", {"mem-lock": True}))
    return Memory(boot_kib, min(current_kib, boot_kib), slots)


def _read_slots(element: Element | None) -> MemorySlots | None:
    if element is None:
        return None
    count = element.number_attribute("slots")
    size_kib = read_kib(element)
    with element.located():
        return MemorySlots(count or 1, size_kib)


def _read_cells(numa: Element, plan: Plan, backing: Backing) -> int:
    total_kib = 0
    distances: list[Option] = []
    for index, cell in enumerate(numa.children("cell")):
        given = cell.number_attribute("id")
        node = index if given is None else given
        cpus = cell.attribute("cpus")
        unit = cell.choice("unit", UNITS_BYTES) or _KIB
        size_kib = _rounded_up(-(-cell.number(cell.get_attribute("memory")) * unit // _KIB), _MIB_KIB)
        is_shared = cell.choice("memAccess", {"shared": True, "private": False})
        discards = cell.choice("discard", {"yes": True, "no": False})
        if is_shared is not None:
            backing.node_shared[node] = is_shared
        if discards is not None:
            backing.node_discards[node] = discards
        distances += _read_distances(cell, node)
        cell.finish()
        name = f"ram-node{node}"
        words: dict[str, object] = {"type": "node", "nodeid": node}
        if cpus is not None:
            words["cpus"] = _ranges(read_set(cell, cpus))
        plan.head.append(_backend(name, size_kib, backing, node))
        plan.head.append(keyval("numa", {**words, "memdev": name}))
        total_kib += size_kib
    numa.finish()
    plan.head += distances
    return total_kib


def _read_distances(cell: Element, node: int) -> list[Option]:
    element = cell.child("distances")
    if element is None:
        return []
    found = []
    for sibling in element.children("sibling"):
        other, value = (sibling.number(sibling.get_attribute(name)) for name in ("id", "value"))
        sibling.finish()
        found.append(keyval("numa", {"type": "dist", "src": node, "dst": other, "val": value}))
    element.finish()
    return found


def _ranges(numbers: tuple[int, ...]) -> list[object]:
    """Write a set as QEMU wants it, one word for each run."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return [str(low) if low == high else f"{low}-{high}" for low, high in runs]


def _backend(
    name: str, size_kib: int, backing: Backing, node: int | None, *, is_shared: bool | None = None, page_kib: int | None = None
) -> Option:
    pages = _pages_of(backing, node)
    shared = backing.is_shared if node is None else backing.node_shared.get(node, backing.is_shared)
    shared = shared if is_shared is None else is_shared
    huge_kib = page_kib if page_kib is not None else (None if pages is None else pages.size_kib or _DEFAULT_HUGE_KIB)
    properties: dict[str, object] = {"id": name, "size": size_kib * _KIB}
    if backing.source == "memfd":
        properties = {"qom-type": "memory-backend-memfd", **properties}
        if huge_kib is not None:
            properties |= {"hugetlb": True, "hugetlbsize": huge_kib * _KIB}
        shared = True if shared is None else shared
    elif huge_kib is not None:
        properties = {"qom-type": "memory-backend-file", **properties, "mem-path": huge_path(huge_kib), "prealloc": True}
        if name == "pc.ram":
            properties["x-use-canonical-path-for-ramblock-id"] = False
    else:
        properties = {"qom-type": "memory-backend-ram", **properties}
    if shared is not None and (shared or huge_kib is not None):
        properties["share"] = shared
    if backing.preallocates:
        properties["prealloc"] = True
        if backing.threads:
            properties["prealloc-threads"] = backing.threads
    policy = backing.node_policies.get(node, backing.policy) if node is not None else backing.policy
    if policy is not None:
        properties |= {"host-nodes": list(_set_of(policy[1])), "policy": policy[0]}
    discards = backing.discards if node is None else backing.node_discards.get(node, backing.discards or None)
    if discards is not None and properties["qom-type"] == "memory-backend-file" and (discards or node is not None):
        properties["discard-data"] = discards
    return of_json("object", properties)


def _rounded_up(size_kib: int, granule_kib: int) -> int:
    return -(-size_kib // granule_kib) * granule_kib


def _set_of(words: str) -> list[int]:
    found: set[int] = set()
    for word in words.split(","):
        first, _, last = word.removeprefix("^").partition("-")
        numbers = set(range(int(first, 0), int(last or first, 0) + 1))
        found = found - numbers if word.startswith("^") else found | numbers
    return sorted(found)


def _pages_of(backing: Backing, node: int | None) -> HugePages | None:
    for pages in backing.huge_pages:
        if node is not None and node in pages.nodes:
            return pages
    return next(
        (pages for pages in backing.huge_pages if not pages.nodes),
        None if node is not None else next(iter(backing.huge_pages), None),
    )


def huge_path(size_kib: int) -> str:
    """Name the directory where systemd and libvirt's users mount huge pages of a size."""
    names = {2048: "/dev/hugepages", 1048576: "/dev/hugepages1G"}
    return names.get(size_kib, f"/dev/hugepages{size_kib}K")


def read_modules(devices: Element, plan: Plan, backing: Backing) -> None:
    """Read `<memory>` devices: DIMMs, NVDIMMs, and virtio memory."""
    for index, element in enumerate(devices.children("memory")):
        model = element.choice("model", {name: name for name in ("dimm", "nvdimm", "virtio-mem")})
        if model is None:
            raise element.invalid("attribute model is missing")
        _read_module(element, model, index, plan, backing)


def _read_module(element: Element, model: str, index: int, plan: Plan, backing: Backing) -> None:
    access = element.choice("access", {"shared": True, "private": False})
    page_kib, nodes, path, extra = _read_source(element)
    target = element.get_child("target")
    size_kib = _rounded_up(read_kib(target.get_child("size")), 2 * _MIB_KIB if model == "nvdimm" else _MIB_KIB)
    node = target.child_text("node")
    block = target.child("block")
    requested = target.child("requested")
    sizes = {
        "block-size": None if block is None else read_kib(block) * _KIB,
        "requested-size": None if requested is None else read_kib(requested) * _KIB,
    }
    is_readonly = target.has("readonly")
    target.finish()
    if is_readonly:
        raise target.not_carried(value="readonly")
    cell = None if node is None else element.number(node)
    kind = model.replace("-", "")
    slot, base, pci = None, None, None
    if model == "virtio-mem":
        pci = read_pci_address(element)
    else:
        slot, base = _read_dimm_address(element)
    name = read_alias(element, f"{kind}{index if slot is None else slot}")
    element.finish()
    own = backing if nodes is None else replace(backing, policy=("bind", nodes), node_policies={})
    if path is not None:
        own = replace(own, source=None, huge_pages=[])
    backend = _backend(f"mem{name}", size_kib, own, cell, is_shared=access, page_kib=page_kib)
    if path is not None:
        given = backend.properties | {"qom-type": "memory-backend-file", "mem-path": path}
        prealloc = {} if "pmem" in extra else {"prealloc": True}
        backend = of_json("object", {"share": access or False, **prealloc, **given, **extra})
        plan.machine_properties["nvdimm"] = True
    properties: dict[str, object] = {"driver": {"dimm": "pc-dimm"}.get(model, model)}
    if model == "virtio-mem":
        properties = {"driver": "virtio-mem-pci", **{key: value for key, value in sizes.items() if value is not None}}
        given = {key: value for key, value in backend.properties.items() if key != "prealloc"}
        if len(given) < len(backend.properties):  # the device takes its memory bit by bit
            properties["prealloc"] = True
        backend = of_json("object", {**given, "reserve": False})
    if cell is not None:
        properties["node"] = cell
    properties |= {"memdev": f"mem{name}", "id": name}
    properties |= {key: value for key, value in (("slot", slot), ("addr", base)) if value is not None}
    where = None if model != "virtio-mem" else Slot.EXPRESS if plan.board is Board.Q35 else Slot.PCI
    plan.add(Device(element, "memory", properties, where, pci, before=[backend]))


def _read_source(element: Element) -> tuple[int | None, str | None, str | None, dict[str, object]]:
    source = element.child("source")
    if source is None:
        return None, None, None, {}
    size = source.child("pagesize")
    page_kib = None if size is None else read_kib(size)
    nodes = source.child_text("nodemask")
    path = source.child_text("path")
    align = source.child("alignsize")
    extra: dict[str, object] = {} if align is None else {"align": read_kib(align) * _KIB}
    if source.has("pmem"):
        extra["pmem"] = True
    source.finish()
    if nodes is not None:
        read_set(source, nodes)
    return page_kib, nodes, path, extra


def _read_dimm_address(element: Element) -> tuple[int | None, int | None]:
    address = element.child("address")
    if address is None:
        return None, None
    address.choice("type", {"dimm": None})
    slot, base = address.number_attribute("slot"), address.number_attribute("base")
    address.finish()
    return slot, base
