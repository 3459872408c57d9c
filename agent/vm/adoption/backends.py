"""What stands behind devices on the host: character devices, networks, objects; turned into what works on another host too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from agent.vm.adoption.draft import Draft
from agent.vm.adoption.words import last, parse_argument, parse_words
from agent.vm.definition import Tap
from agent.vm.options import MONITOR_OBJECTS, RUN_DIR, Option, Properties, Syntax

_NET_DEVICES: Final = Path("/sys/class/net")
_CHARDEV_PATHS: Final = frozenset({"path", "logfile", "input-path"})
_OBJECT_PATHS: Final = frozenset({"mem-path", "filename", "file", "dir", "keyfile"})
_TAP_LINE: Final = re.compile(r"(?P<id>\S+): index=\d+,type=tap,(?:ifname=(?P<ifname>[^,\s]+)|.*)")
_NET_LINE: Final = re.compile(r"^(?: \\ )?(?P<id>\S+): index=\d+,type=(?P<type>\S+?),", re.MULTILINE)
_WORKS_ANYWHERE: Final = (
    *("none", "null", "vc", "pty", "chardev:", "tcp:", "telnet:", "websocket:", "udp:", "msmouse", "ringbuf", "braille"),
)
_HOST_NETWORK: Final = frozenset({"vhost-vdpa", "vhost-user", "l2tpv3", "af-xdp", "netmap", "vmnet-host", "vmnet-shared", "passt"})
# Objects that can be written down again from what QEMU tells of them.
_TOLD: Final = {
    "iothread": (),
    "rng-builtin": (),
    "rng-random": ("filename",),
    "memory-backend-ram": ("size", "share"),
    "memory-backend-memfd": ("size", "share"),
    "memory-backend-file": ("size", "share", "mem-path"),
}


def add_chardev(draft: Draft, text: str, monitors: set[str]) -> None:
    """Add a `-chardev`, unless only monitors use it."""
    properties, _ = parse_argument(text, "backend")
    name = last(properties.get("id"))
    if name in monitors:
        draft.dropped.append(f"-chardev {name}: it is a monitor's")
        return
    backend = last(properties.get("backend"))
    properties = draft.absolute_in(properties, _CHARDEV_PATHS, f"-chardev {name}")
    if backend == "stdio" or (backend == "socket" and "fd" in properties):
        properties = _socket(name)
        draft.changed.append(f"-chardev {name}: a UNIX socket in the VM's directory, as {backend} means nothing on another host")
    elif backend == "file" and "append" not in properties:
        properties = {**properties, "append": "on"}
        draft.changed.append(f"-chardev {name}: append=on, so that the file is kept when the guest moves")
    elif backend in ("serial", "parallel", "tty", "parport"):
        draft.blockers.append(f"-chardev {name}: {last(properties.get('path'))} is a device of this host")
    draft.add("chardev", properties)


def add_line(draft: Draft, kind: str, text: str) -> None:
    """Add a `-serial` or `-parallel`: what has a file or a terminal becomes a character device that works elsewhere."""
    name = f"char{kind}{sum(option.name == kind for option in draft.options)}"
    if text.startswith("mon:"):
        draft.dropped.append(f"-{kind} {text}: the monitor on it")
        text = text.removeprefix("mon:")
    properties = _line_backend(draft, text, f"-{kind} {text}", name)
    if properties is None:
        draft.add_text(kind, text)
        return
    draft.add("chardev", properties)
    draft.add_text(kind, f"chardev:{name}")


def _line_backend(draft: Draft, text: str, where: str, name: str) -> Properties | None:
    scheme, _, rest = text.partition(":")
    match scheme:
        case "stdio":
            draft.changed.append(f"{where}: the UNIX socket {name}.sock in the VM's directory")
            return _socket(name)
        case "file":
            draft.changed.append(f"{where}: kept as a character device with append=on")
            return {"backend": "file", "id": name, "path": draft.absolute(rest, where), "append": "on"}
        case "unix":
            given = parse_words(rest, "path")
            return {"backend": "socket", "id": name, **given, "path": draft.absolute(last(given.get("path")), where)}
        case "pipe":
            return {"backend": "pipe", "id": name, "path": draft.absolute(rest, where)}
    if not text.startswith(_WORKS_ANYWHERE):
        draft.blockers.append(f"{where}: {text} belongs to this host")
    return None


def _socket(name: str) -> Properties:
    return {"backend": "socket", "id": name, "path": f"{RUN_DIR}/{name}.sock", "server": "on", "wait": "off"}


def add_netdev(draft: Draft, text: str) -> None:
    """Add a `-netdev` unless it is gone; a tap becomes one that the agents open."""
    properties, is_json = parse_argument(text, "type")
    name, kind = last(properties.get("id")), last(properties.get("type"))
    if f"{name}: " not in draft.facts.network:
        draft.dropped.append(f"-netdev {name}: it was removed since the start")
        return
    if kind in ("tap", "bridge"):
        _add_tap(draft, name, properties)
        return
    if kind in _HOST_NETWORK or "fd" in properties:
        draft.blockers.append(f"-netdev {name}: {kind} belongs to this host")
    draft.add("netdev", draft.absolute_in(properties, frozenset({"path"}), f"-netdev {name}"), is_json=is_json)


def add_new_netdevs(draft: Draft) -> None:
    """Add the network backends that came since the start; QEMU tells the arguments of none but taps."""
    known = {option.get("id") for option in draft.options if option.name == "netdev"}
    plugged = {str(device.properties.get("netdev")): device for device in draft.facts.devices if device.is_hotplugged}
    for match in _NET_LINE.finditer(draft.facts.network):
        name, kind = match["id"], match["type"]
        if name in known or name.startswith("#") or kind == "nic" or name not in plugged:
            continue
        if kind == "tap":
            _add_tap(draft, name, {})
        elif kind == "user":
            draft.add("netdev", {"type": "user", "id": name}, is_json=True)
            draft.changed.append(f"-netdev {name}: added with QEMU's defaults of a user network; QEMU does not tell its arguments")
        else:
            draft.blockers.append(f"-netdev {name}: it came since the start, and QEMU does not tell the arguments of type {kind}")


def _add_tap(draft: Draft, name: str, properties: Properties) -> None:
    devices = [match["ifname"] for match in _TAP_LINE.finditer(draft.facts.network) if match["id"] == name and match["ifname"]]
    given = last(properties.get("ifname"))
    device = given or (devices[0] if devices else "")
    bridge = last(properties.get("br")) or _bridge_of(device)
    queues = int(last(properties.get("queues")) or "1")
    has_vhost = last(properties.get("vhost")) == "on" or "vhostfd" in properties
    draft.add("netdev", {"type": "tap", "id": name}, is_json=True)
    # A name that the kernel chose may be another's on the next host.
    draft.taps.append(Tap(name, given or None, bridge or None, queues, has_vhost))
    place = f" in bridge {bridge}" if bridge else ""
    named = given or "with a name that the kernel chooses"
    draft.changed.append(f"-netdev {name}: tap {named}{place}, opened by the agent; no scripts are run")


def _bridge_of(device: str) -> str:
    master = _NET_DEVICES / device / "master"
    return master.resolve().name if device and master.exists() else ""


def add_object(draft: Draft, text: str) -> None:
    """Add an `-object` unless it is gone."""
    properties, is_json = parse_argument(text, "qom-type")
    name = last(properties.get("id"))
    if last(properties.get("qom-type")) in MONITOR_OBJECTS:
        draft.dropped.append(f"-object {name}: it is a monitor")
        return
    if name not in draft.facts.objects:
        draft.dropped.append(f"-object {name}: it was removed since the start")
        return
    draft.add("object", draft.absolute_in(properties, _OBJECT_PATHS, f"-object {name}"), is_json=is_json)


def add_new_objects(draft: Draft) -> None:
    """Add the objects that came since the start; they stand before all devices, wherever they are written."""
    known = {option.get("id") for option in draft.options if option.name == "object"}
    for name, told in draft.facts.objects.items():
        if name in known or name == "pc.ram" or name.startswith("ram-node"):
            continue
        kind = str(told["qom-type"])
        if kind in MONITOR_OBJECTS:
            continue
        if kind not in _TOLD:
            draft.blockers.append(f"object {name}: {kind} came since the start, and QEMU does not tell its arguments")
            continue
        values = {key: told[key] for key in _TOLD[kind] if key in told}
        draft.options.append(Option("object", Syntax.JSON, None, {"qom-type": kind, "id": name, **values}))
        draft.changed.append(f"-object {kind} {name}: added, as it came since the start")
