"""Two hosts with a network between them, as two network namespaces on one machine.

      host-a             host-b
    10.77.N.11         10.77.N.12        each in a namespace of its own
        `------ bridge ------'
             10.77.N.1                   this machine: the coordinator and `ferry`

Needs root, iproute2 and nftables. The links can be made slow, and a host can be made silent: then its packets vanish,
in both directions, without a word to anybody, as when a cable is pulled.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from deploy.lab.fleet import HOSTS

if TYPE_CHECKING:
    from types import TracebackType

_TABLE = "ferry_lab"
_PARTED = "ferry_lab_parted"
_SUBNETS = 250


class TwoHosts:
    """The namespaces and links, while it is entered; the places of a fleet.

    Leaving it removes them; processes in them are the caller's to end before.
    """

    def __init__(self) -> None:
        self._number = os.getpid() % _SUBNETS
        self._names = f"ferry{os.getpid()}"
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Make the namespaces and links.

        Raises:
            CalledProcessError: not root, or the kernel lacks something; what was made is removed.
        """
        bridge = f"fb{os.getpid()}"
        with ExitStack() as undo:
            _run("ip", "link", "add", bridge, "type", "bridge")
            undo.callback(_run, "ip", "link", "delete", bridge)
            _run("ip", "address", "add", f"{self.address('')}/24", "dev", bridge)
            _run("ip", "link", "set", bridge, "up")
            for host in HOSTS:
                self._add_host(host, bridge, undo)
            self._stack = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Remove them."""
        self._stack.close()

    def address(self, place: str) -> str:
        """Give a host's address; that of this machine for everything else."""
        last = 11 + HOSTS.index(place) if place in HOSTS else 1
        return f"10.77.{self._number}.{last}"

    def prefix(self, place: str) -> tuple[str, ...]:
        """Start a host's processes in its namespace; `ip` becomes the process, so that its pid is theirs."""
        return ("ip", "netns", "exec", self.namespace(place)) if place in HOSTS else ()

    def namespace(self, host: str) -> str:
        """Name a host's namespace, for `ip netns exec`."""
        return f"{self._names}-{host[-1]}"

    def slow_down(self, host: str, rate: str, *, latency: str = "50ms") -> None:
        """Bound what a host sends, as `100mbit`; packets wait at most `latency` and are dropped then."""
        shape = ("tbf", "rate", rate, "burst", "64kb", "latency", latency)
        self._in(host, "tc", "qdisc", "replace", "dev", "eth0", "root", *shape)

    def silence(self, host: str) -> None:
        """Let all packets of a host vanish, those of connections that stand too."""
        self._in(host, "nft", "add", "table", "inet", _TABLE)
        for hook in ("input", "output"):
            rule = f"{{ type filter hook {hook} priority 0; policy accept; }}"
            self._in(host, "nft", "add", "chain", "inet", _TABLE, hook, rule)
            interface = "iifname" if hook == "input" else "oifname"
            self._in(host, "nft", "add", "rule", "inet", _TABLE, hook, interface, "eth0", "drop")

    def heal(self, host: str) -> None:
        """Undo `silence`."""
        self._in(host, "nft", "delete", "table", "inet", _TABLE)

    def part(self) -> None:
        """Let all packets between the two hosts vanish; this machine still reaches both."""
        here, there = HOSTS
        self._in(here, "nft", "add", "table", "inet", _PARTED)
        for hook, end in (("input", "saddr"), ("output", "daddr")):
            rule = f"{{ type filter hook {hook} priority 0; policy accept; }}"
            self._in(here, "nft", "add", "chain", "inet", _PARTED, hook, rule)
            self._in(here, "nft", "add", "rule", "inet", _PARTED, hook, "ip", end, self.address(there), "drop")

    def rejoin(self) -> None:
        """Undo `part`."""
        self._in(HOSTS[0], "nft", "delete", "table", "inet", _PARTED)

    def _add_host(self, host: str, bridge: str, undo: ExitStack) -> None:
        namespace = self.namespace(host)
        outside = f"fv{os.getpid()}{host[-1]}"
        _run("ip", "netns", "add", namespace)
        undo.callback(_run, "ip", "netns", "delete", namespace)
        _run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _run("ip", "link", "set", outside, "master", bridge, "up")
        self._in(host, "ip", "address", "add", f"{self.address(host)}/24", "dev", "eth0")
        self._in(host, "ip", "link", "set", "eth0", "up")
        self._in(host, "ip", "link", "set", "lo", "up")

    def _in(self, host: str, *command: str) -> None:
        _run(*self.prefix(host), *command)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
