"""Serial and parallel ports, consoles and channels: `<serial>`, `<parallel>`, `<console>`, `<channel>`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from agent.vm import rules
from agent.vm.domain.addresses import read_alias, read_numbers, read_pci_address
from agent.vm.domain.controllers import need, read_usb
from agent.vm.domain.plan import Device, Slot
from agent.vm.options import RUN_DIR, Option, keyval, of_json

if TYPE_CHECKING:
    from agent.vm.domain.plan import Plan
    from agent.vm.domain.reader import Element

_KINDS: Final = ("pty", "file", "unix", "null", "tcp", "udp", "dev", "pipe", "stdio", "vc", "qemu-vdagent", "spicevmc", "spiceport")
# What a display of type spice takes the line for, by the element. Source: chardev/spice.c.
_SPICE_NAMES: Final = {"channel": "vdagent", "redirdev": "usbredir"}
_PLAIN: Final = {"pty": "pty", "null": "null", "stdio": "stdio", "vc": "vc"}
_HOST: Final = re.compile(r"[A-Za-z0-9.:_-]{1,255}")
_PORT: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
_PORT_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SERIAL_PORTS: Final = 4  # hw/char/serial-isa.c, MAX_ISA_SERIAL_PORTS
_PARALLEL_PORTS: Final = 3


def read_chardev(element: Element, name: str) -> Option:
    """Read the host's end of a line, attribute `type` and child `source`, into the chardev `char{name}`."""
    kind = element.choice("type", {kind: kind for kind in _KINDS})
    if kind is None:
        raise element.invalid("attribute type is missing")
    chardev: dict[str, object]
    if kind in _PLAIN:
        source = element.child("source")
        if source is not None:
            source.accept("path")  # where libvirt found it last
            source.finish()
        element.accept("tty")
        chardev = {"backend": _PLAIN[kind], "id": f"char{name}"}
    elif kind == "udp":
        chardev = _read_udp(element, name)
    elif kind in ("spicevmc", "spiceport"):
        chardev = _read_spice_line(element, kind, name)
    elif kind == "qemu-vdagent":
        chardev = _read_vdagent(element, name)
    else:
        chardev = _read_source(element, kind, name)
    _read_protocol(element)
    log = element.child("log")
    if log is not None:
        path = log.get_attribute("file")
        with log.located():
            rules.check_path(path)
        chardev |= {"logfile": path, "logappend": log.switch("append") or False}
        log.finish()
    with element.located():
        return keyval("chardev", chardev)


def _read_protocol(element: Element) -> None:
    """Take the protocol of what is no TCP line, where there is none to choose."""
    protocol = element.child("protocol")
    if protocol is not None:
        protocol.choice("type", {"raw": None})
        protocol.finish()


def _read_source(element: Element, kind: str, name: str) -> dict[str, object]:
    source = element.child("source")
    chardev_id: dict[str, object] = {"id": f"char{name}"}
    if source is None:
        if kind == "unix":
            return {"backend": "socket", **chardev_id, "path": f"{RUN_DIR}/{name}.sock", "server": True, "wait": False}
        raise element.invalid("element source is missing")
    source.ignore("seclabel")
    mode = source.choice("mode", {"bind": "bind", "connect": "connect"})
    if kind == "tcp":
        return _read_tcp(element, source, chardev_id, mode)
    path = source.attribute("path")
    if path is None and not (kind == "unix" and mode != "connect"):
        raise source.invalid("attribute path is missing")
    if path is not None:
        with source.located():
            rules.check_path(path)
    appends = source.switch("append") if kind == "file" else None
    reconnect = source.child("reconnect")
    source.finish() if reconnect is None else None
    match kind:
        case "file":
            chardev = {"backend": "file", **chardev_id, "path": path, "append": True if appends is None else appends}
        case "dev":
            chardev = {"backend": "parallel" if element.tag == "parallel" else "serial", **chardev_id, "path": path}
        case "pipe":
            chardev = {"backend": "pipe", **chardev_id, "path": path}
        case _:
            chardev = {"backend": "socket", **chardev_id, "path": path or f"{RUN_DIR}/{name}.sock"}
            chardev |= {} if mode == "connect" else {"server": True, "wait": False}
    if reconnect is not None:
        chardev |= _read_reconnect(reconnect)
        source.finish()
    return chardev


def _read_reconnect(element: Element) -> dict[str, object]:
    is_enabled = element.choice("enabled", {"yes": True, "no": False})
    timeout_s = element.number_attribute("timeout")
    element.finish()
    return {"reconnect": timeout_s or 1} if is_enabled else {}


def _read_tcp(element: Element, source: Element, chardev_id: dict[str, object], mode: str | None) -> dict[str, object]:
    host, port = _read_endpoint(source)
    source.accept("tls", "no")
    reconnect = source.child("reconnect")
    chardev: dict[str, object] = {"backend": "socket", **chardev_id, "host": host, "port": port}
    protocol = element.child("protocol")
    if protocol is not None:
        if protocol.choice("type", {"raw": False, "telnet": True}):
            chardev["telnet"] = True
        protocol.finish()
    if mode == "bind":
        chardev |= {"server": True, "wait": False}
    elif reconnect is not None:
        chardev |= _read_reconnect(reconnect)
    source.finish()
    return chardev


def _read_endpoint(source: Element, default_host: str = "127.0.0.1") -> tuple[str, str]:
    host = source.attribute("host") or default_host
    port = source.get_attribute("service")
    if not _HOST.fullmatch(host) or not _PORT.fullmatch(port):
        raise source.invalid(f"{host[:60]!r} port {port[:40]!r} is no place on a network")
    return host, port


def _read_udp(element: Element, name: str) -> dict[str, object]:
    chardev: dict[str, object] = {"backend": "udp", "id": f"char{name}"}
    for source in element.children("source"):
        mode = source.choice("mode", {"bind": "bind", "connect": "connect"}) or "connect"
        host, port = _read_endpoint(source)
        source.finish()
        chardev |= {"host": host, "port": port} if mode == "connect" else {"localaddr": host, "localport": port}
    if "port" not in chardev:
        raise element.invalid("a source of mode connect is missing")
    return chardev


def _read_spice_line(element: Element, kind: str, name: str) -> dict[str, object]:
    if kind == "spicevmc":
        if element.tag not in _SPICE_NAMES:
            raise element.attribute_not_carried("type", kind)
        return {"backend": kind, "id": f"char{name}", "name": _SPICE_NAMES[element.tag]}
    source = element.get_child("source")
    channel = source.get_attribute("channel")
    source.finish()
    if not _PORT_NAME.fullmatch(channel):
        raise source.invalid(f"channel {channel[:60]!r}: letters, digits, dots, dashes and underscores are wanted")
    return {"backend": kind, "id": f"char{name}", "name": channel}


def _read_vdagent(element: Element, name: str) -> dict[str, object]:
    chardev: dict[str, object] = {"backend": "qemu-vdagent", "id": f"char{name}", "name": "vdagent"}
    source = element.child("source")
    if source is not None:
        clipboard, mouse = source.child("clipboard"), source.child("mouse")
        if clipboard is not None:
            chardev["clipboard"] = clipboard.choice("copypaste", {"yes": True, "no": False}) or False
            clipboard.finish()
        if mouse is not None:
            chardev["mouse"] = mouse.choice("mode", {"server": False, "client": True}) or False
            mouse.finish()
        source.finish()
    return chardev


def read_lines(devices: Element, plan: Plan) -> None:
    """Read serial and parallel ports, channels and consoles."""
    serials: list[Option] = []
    for index, element in enumerate(devices.children("serial")):
        serials.append(_read_serial(element, index, plan))
    for index, element in enumerate(devices.children("parallel")):
        _read_parallel(element, index, plan)
    for index, element in enumerate(devices.children("channel")):
        _read_channel(element, index, plan)
    for index, element in enumerate(devices.children("console")):
        _read_console(element, index, plan, serials)


def _read_serial(element: Element, index: int, plan: Plan) -> Option:
    target = element.child("target")
    port, kind, model = index, "isa-serial", None
    if target is not None:
        kind = target.choice("type", {name: name for name in ("isa-serial", "usb-serial", "pci-serial", "isa-debug")}) or kind
        given = target.number_attribute("port")
        port = index if given is None else given
        model_element = target.child("model")
        if model_element is not None:
            model = model_element.choice(
                "name", {name: name for name in ("isa-serial", "usb-serial", "pci-serial", "isa-debugcon")}
            )
            model_element.finish()
        target.finish()
    name = read_alias(element, f"serial{index}")
    chardev = read_chardev(element, name)
    driver = model or ("isa-debugcon" if kind == "isa-debug" else kind)
    properties: dict[str, object] = {"driver": driver, "chardev": f"char{name}", "id": name}
    device = Device(element, "serial", properties, before=[chardev])
    if driver == "isa-serial":
        if port >= _SERIAL_PORTS:
            raise element.invalid(f"serial port {port}: 0 to {_SERIAL_PORTS - 1} is wanted")
        if any(
            other.properties.get("driver") == driver and other.properties.get("index") == port for other in plan.of_kind("serial")
        ):
            raise element.invalid(f"serial port {port} is given twice")
        properties["index"] = port
        properties |= _read_isa_address(element)
    elif driver == "isa-debugcon":
        properties |= _read_isa_address(element)
    elif driver == "usb-serial":
        properties |= read_usb(element)
        device.kind = "usb-serial"
    else:
        device.pci, device.address = Slot.PCI, read_pci_address(element)
    element.finish()
    plan.add(device)
    return chardev


def _read_isa_address(element: Element) -> dict[str, object]:
    address = element.child("address")
    if address is None:
        return {}
    address.choice("type", {"isa": None})
    numbers = {name: address.number_attribute(name) for name in ("iobase", "irq")}
    address.finish()
    return {key: value for key, value in numbers.items() if value is not None}


def _read_parallel(element: Element, index: int, plan: Plan) -> None:
    target = element.child("target")
    if target is not None:
        target.accept("type")
        target.number_attribute("port")
        target.finish()
    if index >= _PARALLEL_PORTS:
        raise element.invalid(f"more than {_PARALLEL_PORTS} parallel ports")
    name = read_alias(element, f"parallel{index}")
    chardev = read_chardev(element, name)
    element.finish()
    plan.add(Device(element, "parallel", {"driver": "isa-parallel", "chardev": f"char{name}", "id": name}, before=[chardev]))


def _read_channel(element: Element, index: int, plan: Plan) -> None:
    target = element.get_child("target")
    kind = target.choice("type", {name: name for name in ("virtio", "guestfwd")})
    is_agent = element.peek("type") in ("spicevmc", "qemu-vdagent")
    default_name = "com.redhat.spice.0" if is_agent else None
    name = read_alias(element, f"channel{index}")
    if kind == "guestfwd":
        host, port = target.get_attribute("address"), target.number(target.get_attribute("port"))
        target.finish()
        if not _HOST.fullmatch(host):
            raise target.invalid(f"address {host[:60]!r}")
        chardev = read_chardev(element, name)
        element.finish()
        forward = {"str": f"tcp:{host}:{port}-chardev:char{name}"}
        plan.tail += [chardev, of_json("netdev", {"type": "user", "guestfwd": [forward], "id": name})]
        return
    port_name = target.attribute("name") or default_name
    target.accept("state")
    target.finish()
    if port_name is not None and not _PORT_NAME.fullmatch(port_name):
        raise target.invalid(f"name {port_name[:60]!r}: letters, digits, dots, dashes and underscores are wanted")
    _add_port(element, name, plan, {"driver": "virtserialport"}, {} if port_name is None else {"name": port_name})


def _read_console(element: Element, index: int, plan: Plan, serials: list[Option]) -> None:
    target = element.child("target")
    kind = "serial"
    if target is not None:
        kind = target.choice("type", {"serial": "serial", "virtio": "virtio"}) or "serial"
        target.number_attribute("port")
        target.finish()
    if kind == "virtio":
        _add_port(element, read_alias(element, f"console{index}"), plan, {"driver": "virtconsole"}, {})
        return
    if index > 0:
        raise element.not_carried(value="second serial console")
    first = serials[0] if serials else None
    name = read_alias(element, "serial0") if first is None else first.get("id").removeprefix("char")
    read_alias(element, "")
    address = _read_isa_address(element)
    chardev = read_chardev(element, name)
    element.finish()
    if first is None:  # as under libvirt a console alone makes a serial line
        properties: dict[str, object] = {"driver": "isa-serial", "chardev": f"char{name}", "id": name, "index": 0, **address}
        plan.add(Device(element, "serial", properties, before=[chardev]))
    elif chardev != first or address.items() - plan.of_kind("serial")[0].properties.items():
        raise element.invalid("differs from the first serial line, of which it is another name")


def _add_port(element: Element, name: str, plan: Plan, front: dict[str, object], back: dict[str, object]) -> None:
    numbers = read_numbers(element, "virtio-serial", ("controller", "bus", "port"), zeros=("bus",))
    existing = sorted(index for kind, index in plan.controllers if kind == "virtio-serial")
    index = numbers["controller"] if numbers is not None else existing[0] if existing else 0
    controller = (
        plan.controllers[("virtio-serial", index)].id
        if ("virtio-serial", index) in plan.controllers
        else need(plan, "virtio-serial", index, element)
    )
    bus = f"{controller}.0"
    number = 0 if numbers is None else numbers["port"]
    chardev = read_chardev(element, name)
    element.finish()
    properties = {**front, "bus": bus, "nr": number, "chardev": f"char{name}", "id": name, **back}
    plan.add(Device(element, element.tag, properties, before=[chardev]))


def number_ports(plan: Plan) -> None:
    """Give ports on virtio serial controllers their numbers; 0 is kept for a console."""
    ports = [device for device in plan.devices if device.properties.get("driver") in ("virtserialport", "virtconsole")]
    taken = {(device.properties["bus"], device.properties["nr"]) for device in ports if device.properties["nr"]}
    for device in ports:
        if device.properties["nr"]:
            continue
        bus = device.properties["bus"]
        is_console = device.properties["driver"] == "virtconsole"
        number = 0 if is_console and (bus, 0) not in taken else 1
        while (bus, number) in taken:
            number += 1
        taken.add((bus, number))
        device.properties["nr"] = number
