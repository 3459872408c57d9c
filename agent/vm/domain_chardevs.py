"""Serial lines and consoles in libvirt domain XML."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.vm.devices import Chardev, ChardevKind, Console, Serial

if TYPE_CHECKING:
    from agent.vm.xml_reader import Element

_KINDS = {
    "pty": ChardevKind.PTY,
    "file": ChardevKind.FILE,
    "unix": ChardevKind.UNIX_LISTEN,
    "null": ChardevKind.NULL,
}
_UNIX_MODES = {"bind": ChardevKind.UNIX_LISTEN, "connect": ChardevKind.UNIX_CONNECT}


def read_chardev(element: Element) -> Chardev:
    """Read the host's end of a line: attribute `type` and child `source`."""
    kind = element.choice("type", _KINDS)
    if kind is None:
        raise element.invalid("attribute type is missing")
    source = element.child("source")
    path, appends = None, None
    if source is not None:
        if kind in (ChardevKind.PTY, ChardevKind.NULL):
            source.accept("path")  # where libvirt found it last
            element.accept("tty")
        else:
            path = source.get_attribute("path")
        if kind is ChardevKind.FILE:
            appends = source.switch("append")
        if kind is ChardevKind.UNIX_LISTEN:
            kind = source.choice("mode", _UNIX_MODES) or kind
        source.finish()
    with element.located():
        return Chardev(kind=kind, path=path, appends=appends or False)


def read_consoles(devices: Element, serials: tuple[Serial, ...]) -> tuple[tuple[Serial, ...], tuple[Console, ...]]:
    """Read `<console>`: virtio consoles, and the first one as another name of the first serial line.

    Without a serial line a console of no other type makes one, as with libvirt.
    """
    consoles: list[Console] = []
    for index, element in enumerate(devices.children("console")):
        chardev = read_chardev(element)
        target = element.child("target")
        kind = "serial"
        if target is not None:
            kind = target.choice("type", {"serial": "serial", "virtio": "virtio"}) or "serial"
            target.accept("port", str(index))
            target.finish()
        element.ignore("alias")
        element.finish()
        if kind == "virtio":
            consoles.append(Console(chardev))
        elif index > 0:
            raise element.not_carried(value="second serial console")
        elif not serials:
            serials = (Serial(port=0, chardev=chardev),)
        elif serials[0].chardev != chardev:
            raise element.invalid("differs from the first serial line, of which it is another name")
    return serials, tuple(consoles)
