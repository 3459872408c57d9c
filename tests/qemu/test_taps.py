"""Taps on bridges of a network namespace: the bridge stays what it is, and the tap carries what the bridge or the card does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMESPACE = f"ferrytap{os.getpid()}"
UPLINK = "52:54:00:aa:00:01"
WITH_UPLINK, EMPTY, PINNED = "br-uplink", "br-empty", "br-pinned"
STARTS, ALL_STARTS = 100, 1000

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@contextmanager
def bridges() -> Iterator[None]:
    """Make a bridge with a port of MTU 9000 and a higher address, one without ports, and one whose MTU was set."""
    run("ip", "netns", "add", NAMESPACE)
    try:
        for bridge in (WITH_UPLINK, EMPTY, PINNED):
            inside("ip", "link", "add", bridge, "type", "bridge")
            inside("ip", "link", "set", bridge, "up")
        inside("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "cable")
        inside("ip", "link", "set", "cable", "mtu", "9000", "up")
        inside("ip", "link", "set", "uplink", "address", UPLINK, "mtu", "9000", "up")
        inside("ip", "link", "set", "uplink", "master", WITH_UPLINK)
        inside("ip", "link", "set", PINNED, "mtu", "2000")
        yield
    finally:
        run("ip", "netns", "delete", NAMESPACE)


@pytest.fixture(scope="module", autouse=True)
def _namespace() -> Iterator[None]:
    with bridges():
        yield


@pytest.mark.parametrize(
    ("bridge", "count", "mtu", "of_bridge", "of_tap"),
    [
        pytest.param(WITH_UPLINK, STARTS, 0, 9000, 9000, id="uplink"),
        pytest.param(EMPTY, STARTS, 0, 1500, 1500, id="empty"),
        pytest.param(WITH_UPLINK, ALL_STARTS, 0, 9000, 9000, id="uplink-1000", marks=pytest.mark.matrix),
        pytest.param(EMPTY, ALL_STARTS, 0, 1500, 1500, id="empty-1000", marks=pytest.mark.matrix),
        pytest.param(PINNED, 20, 0, 2000, 2000, id="mtu-set"),
        pytest.param(WITH_UPLINK, 20, 1400, 9000, 9000, id="smaller-for-the-card"),
        pytest.param(PINNED, 20, 9000, 2000, 9000, id="larger-for-the-card"),
    ],
)
def test_no_start_changes_a_bridge(bridge: str, count: int, mtu: int, of_bridge: int, of_tap: int):
    before = inside("cat", f"/sys/class/net/{bridge}/address").strip()

    seen = json.loads(inside(sys.executable, "-m", "tests.qemu.tap_starts", bridge, str(count), *([str(mtu)] if mtu else [])))

    assert seen == {"bridge": [[before, of_bridge]], "taps": [[True, of_tap]]}


def inside(*command: str) -> str:
    """Run a command in the namespace."""
    return run("ip", "netns", "exec", NAMESPACE, *command)


def run(*command: str) -> str:
    """Run a command."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'protos'}"}
    done = subprocess.run(command, cwd=root, env=environment, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
