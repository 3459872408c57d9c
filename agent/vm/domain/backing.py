"""What guest memory is made of on the host: `<memoryBacking>` and `<numatune>`, and the objects that follow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from agent.vm.options import RUN_DIR, Option, of_json

if TYPE_CHECKING:
    from agent.vm.domain.reader import Element

    Policy = tuple[str, tuple[int, ...]]

KIB: Final = 1024
UNITS_BYTES: Final = {
    "b": 1,
    "bytes": 1,
    "KB": 1000,
    "k": KIB,
    "KiB": KIB,
    "MB": 1000**2,
    "M": KIB**2,
    "MiB": KIB**2,
    "GB": 1000**3,
    "G": KIB**3,
    "GiB": KIB**3,
    "TB": 1000**4,
    "T": KIB**4,
    "TiB": KIB**4,
}
_POLICIES: Final = {"strict": "bind", "preferred": "preferred", "interleave": "interleave", "restrictive": None}
_DEFAULT_HUGE_KIB: Final = 2048
_MAX_NUMBER: Final = 4096


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
    is_merged: bool = True
    preallocates: bool = False
    threads: int | None = None
    discards: bool = False
    policy: Policy | None = None
    node_policies: dict[int, Policy | None] = field(default_factory=dict)
    node_shared: dict[int, bool] = field(default_factory=dict)
    node_discards: dict[int, bool] = field(default_factory=dict)

    @property
    def named_nodes(self) -> set[int]:
        """The NUMA cells that settings name."""
        return {*self.node_policies, *(node for pages in self.huge_pages for node in pages.nodes)}

    @property
    def is_plain(self) -> bool:
        """Whether QEMU's default memory will do."""
        return not (self.source or self.is_shared or self.huge_pages or self.preallocates or self.policy or self.discards)


def read_kib(element: Element) -> int:
    """Read a size with its unit, rounded up to KiB."""
    unit_bytes = element.choice("unit", UNITS_BYTES) or KIB
    number = element.number(element.text())
    element.finish()
    return -(-number * unit_bytes // KIB)


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
        backing.is_merged = not element.has("nosharepages")
        element.finish()
    _read_tune(domain.child("numatune"), backing)
    return backing


def _read_huge_pages(element: Element, backing: Backing) -> None:
    pages = element.child("hugepages")
    if pages is None:
        return
    for page in pages.children("page"):
        unit = page.choice("unit", UNITS_BYTES) or KIB
        size_kib = page.number(page.get_attribute("size")) * unit // KIB
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


def _read_policy(element: Element) -> Policy | None:
    """Read a policy with its nodes; `restrictive` is a matter of cgroups alone, which the guest cannot tell."""
    mode = element.attribute("mode") or "strict"
    nodes = element.get_attribute("nodeset")
    if mode not in _POLICIES:
        raise element.attribute_not_carried("mode", mode)
    element.finish()
    found = read_set(element, nodes)
    policy = _POLICIES[mode]
    return None if policy is None else (policy, found)


def read_set(element: Element, words: str) -> tuple[int, ...]:
    """Read a set such as `0-3,^2,7`."""
    found: set[int] = set()
    for word in words.split(","):
        is_without = word.startswith("^")
        first, _, last = word.removeprefix("^").partition("-")
        low, high = element.number(first), element.number(last or first)
        if high > _MAX_NUMBER or low > high:
            raise element.invalid(f"{words!r} is not a set of numbers")
        numbers = range(low, high + 1)
        found = found.difference(numbers) if is_without else found.union(numbers)
    return tuple(sorted(found))


def make_backend(name: str, size_kib: int, backing: Backing, node: int | None) -> Option:
    """Make the object that holds some memory: of a NUMA cell, or of none."""
    pages = _pages_of(backing, node)
    huge_kib = None if pages is None else pages.size_kib or _DEFAULT_HUGE_KIB
    properties = {**_kind_of(name, backing, huge_kib), "id": name, "size": size_kib * KIB}
    shared = backing.is_shared if node is None else backing.node_shared.get(node, backing.is_shared)
    if shared is not None and (shared or huge_kib is not None):
        properties["share"] = shared
    if backing.preallocates:
        properties |= {"prealloc": True} | ({"prealloc-threads": backing.threads} if backing.threads else {})
    policy = backing.policy if node is None else backing.node_policies.get(node, backing.policy)
    if policy is not None:
        properties |= {"host-nodes": list(policy[1]), "policy": policy[0]}
    discards = backing.discards if node is None else backing.node_discards.get(node, backing.discards)
    if properties["qom-type"] == "memory-backend-file" and (discards or node in backing.node_discards):
        properties["discard-data"] = discards
    return of_json("object", properties)


def _kind_of(name: str, backing: Backing, huge_kib: int | None) -> dict[str, object]:
    if backing.source == "memfd":
        huge: dict[str, object] = {} if huge_kib is None else {"hugetlb": True, "hugetlbsize": huge_kib * KIB}
        return {"qom-type": "memory-backend-memfd", "share": True, **huge}
    if huge_kib is not None:
        # The name of the memory in the stream is then that of plain memory.
        plain_name: dict[str, object] = {"x-use-canonical-path-for-ramblock-id": False} if name == "pc.ram" else {}
        return {"qom-type": "memory-backend-file", "mem-path": huge_path(huge_kib), "prealloc": True, **plain_name}
    if backing.source == "file":
        return {"qom-type": "memory-backend-file", "mem-path": f"{RUN_DIR}/{name}", "share": False}
    return {"qom-type": "memory-backend-ram"}


def _pages_of(backing: Backing, node: int | None) -> HugePages | None:
    """Find the pages for a cell: those that name it, else those that name none; without cells the first."""
    named = [pages for pages in backing.huge_pages if node in pages.nodes]
    others = [pages for pages in backing.huge_pages if not pages.nodes or node is None]
    return next(iter([*named, *others]), None)


def huge_path(size_kib: int) -> str:
    """Name the directory where systemd and libvirt's users mount huge pages of a size."""
    names = {2048: "/dev/hugepages", 1048576: "/dev/hugepages1G"}
    return names.get(size_kib, f"/dev/hugepages{size_kib}K")
