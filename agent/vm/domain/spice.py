"""`<graphics type='spice'>` and the lines that end in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.vm.domain.addresses import read_alias
from agent.vm.domain.listening import read_place
from agent.vm.options import FREE_PORT, keyval

if TYPE_CHECKING:
    from agent.vm.domain.plan import Plan
    from agent.vm.domain.reader import Element

_LAST_PORT: Final = 65535
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
    ("gl", "enable", "gl", {"no": None}),
)


def read_spice(element: Element, plan: Plan) -> None:
    """Read the display; its connections are not encrypted, so what has to be is refused."""
    if any(option.name == "spice" for option in plan.tail):
        raise element.invalid("a second display of type spice: QEMU has one")
    port = element.attribute("port")
    is_auto = element.choice("autoport", _YES_NO)
    element.accept("tlsPort", "-1", "0")  # where libvirt was not told of certificates there is none
    element.accept("keymap", "en-us")
    words: dict[str, object] = _where(element, port, is_auto=is_auto)
    words["disable-ticketing"] = True  # without a password nobody could connect otherwise
    insecure = ["default"] if element.choice("defaultMode", {"any": False, "insecure": True}) else []
    for channel in element.children("channel"):
        name = channel.choice("name", {name: name for name in _CHANNELS})
        if channel.choice("mode", {"any": False, "insecure": True}) and name is not None:
            insecure.append(name)
        channel.finish()
    if insecure:
        words["plaintext-channel"] = insecure
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
