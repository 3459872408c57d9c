"""QEMU's block nodes and what holds them together, by their names alone.

Unlike `query-named-block-nodes`, which ends QEMU while a stream job is concluded and not dismissed, `x-debug-query-block-graph`
opens no image and refreshes nothing: it may be asked at any time. Tried on 7.2 and 10.0.

Source: qapi/block-core.json, `XDbgBlockGraph`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.qemu.decoding import as_list, as_mapping, get_int, get_str
from agent.qemu.machine import decode_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.qemu.block_status import DriveReport

# Drivers that change no data on its way.
FILTERS: Final = frozenset({"throttle", "copy-on-read", "blkdebug", "blklogwrites", "blkverify", "preallocate", "compress"})
_DATA, _IMAGE, _COW = "file", "image", "backing"


@dataclass(frozen=True, slots=True)
class Edge:
    """Who uses a node: another node, a job or a device, in which role.

    Attributes:
        permissions: what the parent may do.
        shared: what it lets others do.
    """

    parent: str
    parent_type: str
    role: str
    child: str
    permissions: tuple[str, ...]
    shared: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """Every node that is open, and every use of one."""

    nodes: tuple[str, ...]
    edges: tuple[Edge, ...]

    def child(self, node: str, role: str) -> str:
        """Find the node below; empty without one."""
        edges = (edge for edge in self.edges if edge.parent_type == _DRIVER)
        return next((edge.child for edge in edges if (edge.parent, edge.role) == (node, role)), "")

    def children(self, node: str) -> tuple[str, ...]:
        """List the nodes right below."""
        return tuple(edge.child for edge in self.edges if edge.parent == node and edge.parent_type == _DRIVER)

    def below(self, node: str) -> tuple[str, ...]:
        """List a node and all that it stands on, the nearest first."""
        found = [node]
        for one in found:
            found += [child for child in self.children(one) if child not in found]
        return tuple(found)

    def line(self, drive: DriveReport) -> tuple[str, ...]:
        """Name the nodes of a drive's images, one for each; empty names where a job stands in between.

        QEMU tells the images of filters too, and what is below them is their `file`.
        """
        names: list[str] = []
        node = drive.node
        for image in () if drive.image is None else drive.image.chain():
            names.append(node)
            if not node:
                continue
            below = self.child(node, _DATA) or self.child(node, _IMAGE)
            node = below if image.format in FILTERS else self.child(node, _COW)
        return tuple(names)

    def jobs_of(self, nodes: frozenset[str]) -> frozenset[str]:
        """Name the jobs that work on any of these nodes, or on what is above them and made for a job."""
        return frozenset(edge.parent for edge in self.edges if edge.parent_type == _JOB and edge.child in nodes)

    def roots(self) -> tuple[str, ...]:
        """List the nodes that no other node stands on; what is below them is theirs."""
        below = {edge.child for edge in self.edges if edge.parent_type == _DRIVER}
        return tuple(node for node in self.nodes if node not in below)

    def unclaimed(self) -> frozenset[str]:
        """Name the nodes whose drives neither write nor keep others from anything.

        So it is where they are inactive, and of a drive without a device, or of a read-only one whose device has `share-rw`.
        Source: block/block-backend.c, blk_root_activate().
        """
        drives = (edge for edge in self.edges if edge.parent_type == _BACKEND)
        return frozenset(
            edge.child for edge in drives if "write" not in edge.permissions and _ALL_PERMISSIONS.issubset(edge.shared)
        )

    def is_used(self, node: str) -> bool:
        """Say whether a node, a job or a device uses this one."""
        return any(edge.child == node for edge in self.edges)


_DRIVER: Final = "block-driver"
_JOB: Final = "block-job"
_BACKEND: Final = "block-backend"
_ALL_PERMISSIONS: Final = frozenset({"consistent-read", "write", "write-unchanged", "resize"})


def decode_graph(reply: object) -> Graph:
    """Decode the answer to `x-debug-query-block-graph`."""
    graph = as_mapping(reply, "block graph")
    nodes = {get_int(node, "id"): node for node in (as_mapping(one, "graph node") for one in as_list(graph.get("nodes"), "nodes"))}
    edges = (_edge(as_mapping(one, "edge"), nodes) for one in as_list(graph.get("edges"), "edges"))
    drivers = (get_str(node, "name") for node in nodes.values() if get_str(node, "type") == _DRIVER)
    return Graph(tuple(drivers), tuple(edges))


def _edge(edge: Mapping[str, object], nodes: Mapping[int, Mapping[str, object]]) -> Edge:
    parent, child = (as_mapping(nodes.get(get_int(edge, end)), f"{end} of an edge") for end in ("parent", "child"))
    return Edge(
        get_str(parent, "name"),
        get_str(parent, "type"),
        get_str(edge, "name"),
        get_str(child, "name"),
        decode_names(edge.get("perm"), "perm"),
        decode_names(edge.get("shared-perm"), "shared-perm"),
    )
