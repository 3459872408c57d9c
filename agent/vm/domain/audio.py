"""What a guest is heard by: `<sound>` cards, and the host's side of them, `<audio>`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.vm import rules
from agent.vm.domain.addresses import read_alias, read_pci_address
from agent.vm.domain.controllers import read_usb
from agent.vm.domain.plan import Device, Slot
from agent.vm.domain.virtio import read_driver
from agent.vm.options import Option, of_json

if TYPE_CHECKING:
    from agent.vm.domain.plan import Plan
    from agent.vm.domain.reader import Element

_YES_NO: Final = {"yes": True, "no": False}
_SOUND: Final = {
    "ac97": "AC97",
    "es1370": "ES1370",
    "ich6": "intel-hda",
    "ich9": "ich9-intel-hda",
    "pcspk": None,
    "sb16": "sb16",
    "usb": "usb-audio",
    "virtio": "virtio-sound-pci",
}
_CODECS: Final = {"duplex": "hda-duplex", "micro": "hda-micro", "output": "hda-output"}
_FORMATS: Final = ("s8", "u8", "s16", "u16", "s32", "u32", "f32")
# libvirt's type and QEMU's driver. Source: qapi/audio.json, `AudiodevDriver`.
_DRIVERS: Final = {
    "none": "none",
    "alsa": "alsa",
    "coreaudio": "coreaudio",
    "dbus": "dbus",
    "file": "wav",
    "jack": "jack",
    "oss": "oss",
    "pipewire": "pipewire",
    "pulseaudio": "pa",
    "sdl": "sdl",
    "spice": "spice",
}
# Attributes of a driver, and of each of its two sides: QEMU's key, and whether the value is a number, a yes or no, or a word.
_WORD, _NUMBER, _STATE = str, int, bool
_OF_DRIVER: Final[dict[str, dict[str, tuple[str, type]]]] = {
    "oss": {"tryMMap": ("try-mmap", _STATE), "exclusive": ("exclusive", _STATE), "dspPolicy": ("dsp-policy", _NUMBER)},
    "pa": {"serverName": ("server", _WORD)},
}
_OF_SIDE: Final[dict[str, dict[str, tuple[str, type]]]] = {
    "alsa": {"dev": ("dev", _WORD), "tryPoll": ("try-poll", _STATE)},
    "coreaudio": {"bufferCount": ("buffer-count", _NUMBER)},
    "jack": {
        "serverName": ("server-name", _WORD),
        "clientName": ("client-name", _WORD),
        "connectPorts": ("connect-ports", _WORD),
        "exactName": ("exact-name", _STATE),
    },
    "oss": {"dev": ("dev", _WORD), "bufferCount": ("buffer-count", _NUMBER), "tryPoll": ("try-poll", _STATE)},
    "pa": {"name": ("name", _WORD), "streamName": ("stream-name", _WORD), "latency": ("latency", _NUMBER)},
    "pipewire": {"name": ("name", _WORD), "streamName": ("stream-name", _WORD), "latency": ("latency", _NUMBER)},
    "sdl": {"bufferCount": ("buffer-count", _NUMBER)},
}


def read_audio(devices: Element, plan: Plan, default: str) -> list[str]:
    """Read every `<audio>`; there is always one, of the driver `default` where the XML has none. Gives their ids."""
    ids = []
    for index, element in enumerate(devices.children("audio"), start=1):
        given = element.number_attribute("id")
        name = f"audio{index if given is None else given}"
        driver = element.choice("type", _DRIVERS) or "none"
        properties: dict[str, object] = {"id": name, "driver": driver}
        period_us = element.number_attribute("timerPeriod")
        if period_us is not None:
            properties["timer-period"] = period_us
        if driver == "wav":
            _read_path(element, properties)
        if driver == "sdl":
            element.accept("driver")  # which of SDL's own drivers: a matter of the desktop that QEMU runs on
        if driver == "pipewire":
            element.accept("runtimeDir")  # likewise
        properties |= _read_words(element, _OF_DRIVER.get(driver, {}))
        for tag, key in (("input", "in"), ("output", "out")):
            side = element.child(tag)
            if side is not None:
                properties[key] = _read_side(side, driver)
        element.finish()
        ids.append(name)
        plan.head.append(of_json("audiodev", properties))
    if not ids:
        ids.append("audio1")
        plan.head.append(of_json("audiodev", {"id": "audio1", "driver": default}))
    return ids


def _read_path(element: Element, properties: dict[str, object]) -> None:
    path = element.attribute("path")
    if path is not None:
        with element.located():
            rules.check_path(path)
        properties["path"] = path


def _read_words(element: Element, known: dict[str, tuple[str, type]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, (key, kind) in known.items():
        value: object
        if kind is _STATE:
            value = element.choice(name, _YES_NO)
        elif kind is _NUMBER:
            value = element.number_attribute(name)
        else:
            value = element.attribute(name)
        if value is not None:
            found[key] = value
    return found


def _read_side(side: Element, driver: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, key in (("mixingEngine", "mixing-engine"), ("fixedSettings", "fixed-settings")):
        state = side.choice(name, _YES_NO)
        if state is not None:
            found[key] = state
    for name, key in (("voices", "voices"), ("bufferLength", "buffer-length")):
        number = side.number_attribute(name)
        if number is not None:
            found[key] = number
    settings = side.child("settings")
    if settings is not None:
        for name in ("frequency", "channels"):
            number = settings.number_attribute(name)
            if number is not None:
                found[name] = number
        sample = settings.choice("format", {name: name for name in _FORMATS})
        if sample is not None:
            found["format"] = sample
        settings.finish()
    found |= _read_words(side, _OF_SIDE.get(driver, {}))
    side.finish()
    return found


def read_sound(element: Element, index: int, plan: Plan, audio_ids: list[str]) -> None:
    """Read a `<sound>` card; `audio_ids` are those that `read_audio` gave."""
    model = element.choice("model", {name: name for name in _SOUND})
    if model is None:
        raise element.invalid("attribute model is missing")
    codecs = []
    for entry in element.children("codec"):
        codecs.append(entry.choice("type", _CODECS) or "hda-duplex")
        entry.finish()
    audiodev = _read_audiodev(element, audio_ids)
    if model == "pcspk":  # the board's own
        read_alias(element, "")
        element.finish()
        plan.machine_properties["pcspk-audiodev"] = audiodev
        return
    name = read_alias(element, f"sound{index}")
    properties: dict[str, object] = {"driver": _SOUND[model], "id": name}
    if model == "virtio":
        streams = element.number_attribute("streams")
        properties |= {} if streams is None else {"streams": streams}
        properties |= read_driver(element)
    device = Device(element, "sound", properties)
    if model.startswith("ich"):
        device.after += _codecs(name, codecs or ["hda-duplex"], audiodev)
    else:
        device.properties["audiodev"] = audiodev
    if model == "usb":
        device.properties |= read_usb(element)
    elif model != "sb16":
        device.pci, device.address = Slot.PCI, read_pci_address(element)
    element.finish()
    plan.add(device)


def _read_audiodev(element: Element, audio_ids: list[str]) -> str:
    audio = element.child("audio")
    if audio is None:
        return audio_ids[0]
    audiodev = f"audio{audio.number_attribute('id')}"
    audio.finish()
    if audiodev not in audio_ids:
        raise audio.invalid(f"{audiodev} is not defined")
    return audiodev


def _codecs(card: str, codecs: list[str], audiodev: str) -> list[Option]:
    words = ({"driver": codec, "id": f"{card}-codec{cad}", "bus": f"{card}.0", "cad": cad} for cad, codec in enumerate(codecs))
    return [of_json("device", {**one, "audiodev": audiodev}) for one in words]
