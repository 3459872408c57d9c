"""How much memory the guest has, and its NUMA cells: `<memory>`, `<maxMemory>`, `<numa>`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.vm.definition import MemorySlots
from agent.vm.domain.backing import KIB, UNITS_BYTES, make_backend, read_kib, read_set
from agent.vm.options import Option, keyval

if TYPE_CHECKING:
    from agent.vm.domain.backing import Backing
    from agent.vm.domain.plan import Plan
    from agent.vm.domain.reader import Element

MIB_KIB: Final = 1024
# 40 bits of physical address, QEMU's default for its own models, less a slot's alignment and the devices' window.
_MAX_ADDRESSED_KIB: Final = (1024 - 64) * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Memory:
    """Sizes for the definition."""

    boot_kib: int
    current_kib: int
    slots: MemorySlots | None


def read_memory(domain: Element, cpu: Element | None, plan: Plan, backing: Backing) -> Memory:
    """Read the sizes, and make the objects and NUMA cells of the guest's memory."""
    element = domain.get_child("memory")
    is_dumped = element.switch("dumpCore")
    if is_dumped is not None:
        plan.machine_properties["dump-guest-core"] = is_dumped
    total_kib = read_kib(element)
    current = domain.child("currentMemory")
    current_kib = total_kib if current is None else read_kib(current)
    slots = _read_slots(domain.child("maxMemory"))
    numa = None if cpu is None else cpu.child("numa")
    boot_kib = total_kib
    if numa is not None:
        boot_kib = _read_cells(numa, plan, backing)
    elif backing.named_nodes - {0}:
        raise domain.invalid(f"memory of NUMA cell {max(backing.named_nodes)}: there is no such cell")
    elif not backing.is_plain:
        plan.head.append(make_backend("pc.ram", total_kib, backing, None))
        plan.machine_properties["memory-backend"] = "pc.ram"
    if not backing.is_merged:
        plan.machine_properties["mem-merge"] = False
    if backing.is_locked:
        plan.head.append(keyval("overcommit", {"mem-lock": True}))
    return Memory(boot_kib, min(current_kib, boot_kib), slots)


def _read_slots(element: Element | None) -> MemorySlots | None:
    if element is None:
        return None
    count = element.number_attribute("slots")
    size_kib = read_kib(element)
    if size_kib > _MAX_ADDRESSED_KIB:
        raise element.invalid(f"{size_kib} KiB: a CPU of QEMU addresses {_MAX_ADDRESSED_KIB} KiB with room for devices")
    with element.located():
        return MemorySlots(count or 1, size_kib)


def _read_cells(numa: Element, plan: Plan, backing: Backing) -> int:
    total_kib = 0
    distances: list[Option] = []
    nodes: set[int] = set()
    for index, cell in enumerate(numa.children("cell")):
        given = cell.number_attribute("id")
        node = index if given is None else given
        if node in nodes:
            raise cell.invalid(f"cell {node} is given twice")
        nodes.add(node)
        cpus = cell.attribute("cpus")
        unit = cell.choice("unit", UNITS_BYTES) or KIB
        size_kib = rounded_up(-(-cell.number(cell.get_attribute("memory")) * unit // KIB), MIB_KIB)
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
        plan.head.append(make_backend(name, size_kib, backing, node))
        plan.head.append(keyval("numa", {**words, "memdev": name}))
        total_kib += size_kib
    if unknown := backing.named_nodes - nodes:
        raise numa.invalid(f"memory of NUMA cell {max(unknown)}: there is no such cell")
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


def rounded_up(size_kib: int, granule_kib: int) -> int:
    """Round a size up to a multiple."""
    return -(-size_kib // granule_kib) * granule_kib
