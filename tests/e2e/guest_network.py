"""A network of the guests' own between the two hosts: a bridge in each, and a cable between the bridges."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deploy.lab.fleet import HOSTS
from deploy.lab.network import TwoHosts

BRIDGE = "guests0"
MAC = "52:54:00:12:34:56"
ADDRESS = "10.99.0.2"
_OF_HOST = "10.99.0.1/24"
_CABLE = "cable0"
_FORWARDING = "3"  # BR_STATE_FORWARDING of linux/if_bridge.h
_POLL_S = 0.05
_LISTENER = """\
import json, socket, sys, time
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x8035)) as raw:
    raw.bind((sys.argv[1], 0x8035))
    print("ready", flush=True)
    while True:
        frame = raw.recv(2048)
        print(json.dumps([time.monotonic(), frame[6:12].hex(":")]), flush=True)
"""
# A datagram makes the kernel ask for the address, and nobody has to answer it.
_REACH = """\
import pathlib, socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anyone:
    anyone.sendto(b"x", (sys.argv[1], 9))
    time.sleep(0.1)
rows = [line.split() for line in pathlib.Path("/proc/self/net/arp").read_text().splitlines()[1:]]
sys.exit(not any(row[0] == sys.argv[1] and row[2] != "0x0" and row[5] == sys.argv[2] for row in rows))
"""


def network_card(mac: str = MAC) -> str:
    """Write a network card on the guests' network."""
    return f"""<interface type="bridge"><source bridge="{BRIDGE}"/><mac address="{mac}"/><model type="virtio"/></interface>"""


@contextmanager
def guest_network(network: TwoHosts) -> Iterator[None]:
    """Make the bridges and the cable; they go when the block ends."""
    with ExitStack() as undo:
        for host in HOSTS:
            _in(network, host, "ip", "link", "add", BRIDGE, "type", "bridge", "forward_delay", "0")
            undo.callback(_in, network, host, "ip", "link", "delete", BRIDGE)
            _in(network, host, "ip", "link", "set", BRIDGE, "up")
        first, second = (network.namespace(host) for host in HOSTS)
        there = ("peer", "name", _CABLE, "netns", second)
        _run("ip", "-n", first, "link", "add", _CABLE, "type", "veth", *there)
        undo.callback(_in, network, HOSTS[0], "ip", "link", "delete", _CABLE)
        for host in HOSTS:
            _in(network, host, "ip", "link", "set", _CABLE, "master", BRIDGE, "up")
        for host in HOSTS:
            while _port_state(network, host) != _FORWARDING:
                time.sleep(_POLL_S)  # the kernel notices a second later that a cable is plugged in
        yield


class Announcements:
    """The announcements (RARP) that a host has heard on its bridge."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def of(self, mac: str = MAC) -> list[float]:
        """Return when the announcements of a card came, by `time.monotonic()`."""
        heard = [json.loads(line) for line in self._log.read_text().splitlines()[1:]]
        return [at_s for at_s, sender in heard if sender == mac]


@contextmanager
def announcements(network: TwoHosts, host: str, directory: Path) -> Iterator[Announcements]:
    """Listen on a host's bridge until the block ends."""
    log = directory / "announcements.log"
    command = (*network.prefix(host), sys.executable, "-c", _LISTENER, BRIDGE)
    with log.open("wb") as out, subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out) as listener:
        try:
            while not log.read_bytes():
                if listener.poll() is not None:
                    raise AssertionError(f"the listener on {host} ended")
                os.sched_yield()
            yield Announcements(log)
        finally:
            listener.terminate()


@contextmanager
def host_address(network: TwoHosts, host: str) -> Iterator[None]:
    """Give a host an address on the guests' network."""
    _in(network, host, "ip", "address", "add", _OF_HOST, "dev", BRIDGE)
    try:
        yield
    finally:
        _in(network, host, "ip", "address", "delete", _OF_HOST, "dev", BRIDGE)


def can_reach(network: TwoHosts, host: str) -> bool:
    """Say whether a host reaches the guest, of which the host's kernel then knows the address."""
    reached = subprocess.run(
        (*network.prefix(host), sys.executable, "-c", _REACH, ADDRESS, BRIDGE), check=False, stdin=subprocess.DEVNULL
    )
    return reached.returncode == 0


def _port_state(network: TwoHosts, host: str) -> str:
    command = (*network.prefix(host), "cat", f"/sys/class/net/{_CABLE}/brport/state")
    return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout.strip()


def _in(network: TwoHosts, host: str, *command: str) -> None:
    _run(*network.prefix(host), *command)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
