"""`<graphics>`: VNC, spice, and the displays of a desktop or of a GPU alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.vm import rules
from agent.vm.domain.addresses import read_alias
from agent.vm.domain.audio import read_audio
from agent.vm.domain.listening import read_place
from agent.vm.domain.spice import read_spice
from agent.vm.options import Option, keyval, text

if TYPE_CHECKING:
    from agent.vm.domain.plan import Plan
    from agent.vm.domain.reader import Element

_FIRST_PORT: Final = 5900
_AUTO_PORTS: Final = 1000
_LAST_PORT: Final = 65535
_YES_NO: Final = {"yes": True, "no": False}
_KINDS: Final = ("vnc", "spice", "egl-headless", "sdl", "dbus")


def read_graphics(devices: Element, plan: Plan) -> tuple[bool, list[str]]:
    """Read every display; say whether there is one, and which `<audio>` there are."""
    graphics = [(element, element.choice("type", {kind: kind for kind in _KINDS})) for element in devices.children("graphics")]
    kinds = [kind for _, kind in graphics]
    default = "spice" if "spice" in kinds else "sdl" if "sdl" in kinds else "none"
    audio_ids = read_audio(devices, plan, default)
    local: list[Option] = []
    for element, kind in graphics:
        match kind:
            case "spice":
                read_spice(element, plan)
            case "egl-headless" | "sdl" | "dbus":
                local.append(_read_local(element, str(kind)))
            case _:
                _read_vnc(element, plan, audio_ids)
    if len(local) > 1:
        raise devices.invalid("graphics: egl-headless, sdl and dbus exclude each other: QEMU has one -display")
    plan.tail += local
    if not graphics:
        plan.head.append(text("display", "none"))
    return bool(graphics), audio_ids


def _read_local(element: Element, kind: str) -> Option:
    """Read a display that needs a GPU or a desktop on the host: QEMU says at its start when there is none."""
    words: dict[str, object] = {"type": kind}
    gl = element.child("gl")
    if gl is not None:
        is_on = gl.choice("enable", _YES_NO)
        node = gl.attribute("rendernode")
        gl.finish()
        if node is not None:
            with gl.located():
                rules.check_path(node)
            words["rendernode"] = node
        if is_on is not None and kind != "egl-headless":
            words["gl"] = is_on
    if kind == "sdl":
        is_full = element.choice("fullscreen", _YES_NO)
        if is_full is not None:
            words["full-screen"] = is_full
    if kind == "dbus":
        element.accept("p2p", "no")
        address = element.attribute("address")
        if address is not None:
            words["addr"] = address
    read_alias(element, "")
    element.finish()
    return keyval("display", words)


def _read_vnc(element: Element, plan: Plan, audio_ids: list[str]) -> None:
    port = element.attribute("port")
    auto = element.choice("autoport", _YES_NO)
    websocket = element.attribute("websocket")
    power = element.choice("powerControl", _YES_NO)
    policy = element.choice("sharePolicy", {name: name for name in ("allow-exclusive", "force-shared", "ignore")})
    element.accept("keymap", "en-us")
    place = read_place(element, "vnc.sock")
    read_alias(element, "")
    element.finish()
    display: dict[str, object] = {}
    if place.socket is not None:
        display["vnc"] = f"unix:{place.socket}"
    elif place.address is None:
        display["vnc"] = "none"
    else:
        if auto:  # then a port is what libvirt chose last
            port = None
        display["vnc"] = _display(element, port, place.address, is_auto=auto is not False)
        if port in (None, "-1"):
            display["to"] = _AUTO_PORTS
        if websocket is not None:
            display["websocket"] = True if websocket == "-1" else element.number(websocket)
    if policy is not None:
        display["share"] = policy
    if power is not None:
        display["power-control"] = power
    if audio_ids:
        display["audiodev"] = audio_ids[0]
    plan.tail.append(keyval("vnc", display))


def _display(element: Element, port: str | None, address: str, *, is_auto: bool) -> str:
    host = f"[{address}]" if ":" in address else address
    if port in (None, "-1"):
        if not is_auto and port is None:
            raise element.invalid("without autoport a port is needed")
        return f"{host}:0"
    number = element.number(str(port))
    if not _FIRST_PORT <= number <= _LAST_PORT:
        raise element.invalid(f"port {number}: {_FIRST_PORT} to {_LAST_PORT} is wanted")
    return f"{host}:{number - _FIRST_PORT}"
