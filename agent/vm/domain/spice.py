"""`<graphics type='spice'>` and the lines that end in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.vm import rules
from agent.vm.domain.addresses import read_alias
from agent.vm.domain.listening import read_place
from agent.vm.options import FREE_PORT, keyval

if TYPE_CHECKING:
    from agent.vm.domain.plan import Plan
    from agent.vm.domain.reader import Element

_LAST_PORT: Final = 65535
_CERTIFICATES: Final = "/etc/pki/libvirt-spice"  # where libvirt's guests have them
_YES_NO: Final = {"yes": True, "no": False}
_CHANNELS: Final = ("main", "display", "inputs", "cursor", "playback", "record", "smartcard", "usbredir")
_COMPRESSIONS: Final = ("auto_glz", "auto_lz", "quic", "glz", "lz", "off")
_WAN_COMPRESSIONS: Final = ("auto", "never", "always")
# Child, its attribute, QEMU's key, and QEMU's word for each value. Source: ui/spice-core.c, qemu_spice_opts.
_SETTINGS: Final[tuple[tuple[str, str, str, dict[str, object]], ...]] = (
    ("mouse", "mode", "agent-mouse", {"server": False, "client": True}),
    ("image", "compression", "image-compression", {word: word for word in _COMPRESSIONS}),
    ("jpeg", "compression", "jpeg-wan-compression", {word: word for word in _WAN_COMPRESSIONS}),
    ("zlib", "compression", "zlib-glz-wan-compression", {word: word for word in _WAN_COMPRESSIONS}),
    ("playback", "compression", "playback-compression", {"on": True, "off": False}),
    ("streaming", "mode", "streaming-video", {word: word for word in ("filter", "all", "off")}),
    ("clipboard", "copypaste", "disable-copy-paste", {"yes": None, "no": True}),
    ("filetransfer", "enable", "disable-agent-file-xfer", {"yes": None, "no": True}),
)


def read_spice(element: Element, plan: Plan) -> None:
    """Read the display."""
    if any(option.name == "spice" for option in plan.tail):
        raise element.invalid("a second display of type spice: QEMU has one")
    port = element.attribute("port")
    is_auto = element.choice("autoport", _YES_NO)
    tls_port = element.attribute("tlsPort")
    element.accept("keymap", "en-us")
    words: dict[str, object] = _where(element, port, is_auto=is_auto)
    has_tls = _add_tls(element, words, tls_port)
    words["disable-ticketing"] = True  # without a password nobody could connect otherwise
    modes: dict[str, list[object]] = {"secure": [], "insecure": []}
    for channel, name in [(element, "default"), *((one, one.get_attribute("name")) for one in element.children("channel"))]:
        mode = channel.choice(
            "defaultMode" if channel is element else "mode", {"any": None, "secure": "secure", "insecure": "insecure"}
        )
        if channel is not element:
            if name not in _CHANNELS:
                raise channel.attribute_not_carried("name", name)
            channel.finish()
        if mode is not None:
            modes[mode].append(name)
    if modes["secure"] and not has_tls:
        raise element.invalid("a secure channel without tlsPort")
    words |= {key: names for key, names in (("tls-channel", modes["secure"]), ("plaintext-channel", modes["insecure"])) if names}
    _read_gl(element, words)
    for tag, attribute, key, meanings in _SETTINGS:
        setting = element.child(tag)
        if setting is not None:
            value = setting.choice(attribute, meanings)
            setting.finish()
            if value is not None:
                words[key] = value
    read_alias(element, "")
    element.finish()
    plan.tail.append(keyval("spice", {**words, "seamless-migration": True}))


def _add_tls(element: Element, words: dict[str, object], port: str | None) -> bool:
    """Add the encrypted port; -1 is none, as in a libvirt that was not told of certificates."""
    if port in (None, "-1", "0"):
        return False
    number = element.number(str(port))
    if number > _LAST_PORT:
        raise element.invalid(f"tlsPort {number}: {_LAST_PORT} is the most")
    words |= {"tls-port": number, "x509-dir": _CERTIFICATES}
    return True


def _read_gl(element: Element, words: dict[str, object]) -> None:
    gl = element.child("gl")
    if gl is None:
        return
    is_on = gl.choice("enable", _YES_NO)
    node = gl.attribute("rendernode")
    gl.finish()
    if is_on:
        words["gl"] = True
        if node is not None:
            with gl.located():
                rules.check_path(node)
            words["rendernode"] = node


def _where(element: Element, port: str | None, *, is_auto: bool | None) -> dict[str, object]:
    place = read_place(element, "spice.sock")
    if place.socket is not None:
        return {"unix": True, "addr": place.socket}
    if place.address is None:
        return {"port": 0}
    if is_auto or port == "-1":
        return {"port": FREE_PORT, "addr": place.address}
    number = element.number(port or "0")
    if number > _LAST_PORT:
        raise element.invalid(f"port {number}: {_LAST_PORT} is the most")
    return {"port": number, **({"addr": place.address} if number else {})}


def check_spice_lines(plan: Plan) -> None:
    """Refuse lines that end in a display which is not there.

    Raises:
        InvalidRequest: there is one.
    """
    if any(option.name == "spice" for option in plan.tail):
        return
    for device in plan.devices:
        if any(option.name == "chardev" and option.get("backend") in ("spicevmc", "spiceport") for option in device.before):
            raise device.element.invalid("a display of type spice is missing")
