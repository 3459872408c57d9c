"""What a person sees, hears and types with: `<graphics>`, `<video>`, `<input>`, `<sound>`, `<audio>`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.vm import rules
from agent.vm.domain.addresses import read_alias, read_pci_address
from agent.vm.domain.controllers import read_usb
from agent.vm.domain.listening import read_place
from agent.vm.domain.plan import Device, Slot
from agent.vm.domain.spice import read_spice
from agent.vm.domain.virtio import models, read_driver, slot_of
from agent.vm.options import keyval, of_json, text

if TYPE_CHECKING:
    from agent.vm.domain.plan import Plan
    from agent.vm.domain.reader import Element

_FIRST_PORT: Final = 5900
_AUTO_PORTS: Final = 1000
_LAST_PORT: Final = 65535
_YES_NO: Final = {"yes": True, "no": False}
# Drivers of a first and of a further card.
_VIDEO: Final = {
    "vga": ("VGA", "VGA"),
    "cirrus": ("cirrus-vga", "cirrus-vga"),
    "vmvga": ("vmware-svga", "vmware-svga"),
    "qxl": ("qxl-vga", "qxl"),
    "virtio": ("virtio-vga", "virtio-gpu-pci"),
    "bochs": ("bochs-display", "bochs-display"),
    "ramfb": ("ramfb", "ramfb"),
}
_SOUND: Final = {
    "ac97": "AC97",
    "es1370": "ES1370",
    "ich6": "intel-hda",
    "ich9": "ich9-intel-hda",
    "sb16": "sb16",
    "usb": "usb-audio",
}
_CODECS: Final = {"duplex": "hda-duplex", "micro": "hda-micro", "output": "hda-output"}
_INPUTS: Final = {"mouse": "mouse", "tablet": "tablet", "keyboard": "kbd"}
_VIRTIO_INPUTS: Final = {"mouse": "mouse", "tablet": "tablet", "keyboard": "keyboard"}
_TOGGLES: Final = ("ctrl-ctrl", "alt-alt", "shift-shift", "meta-meta", "scrolllock", "ctrl-scrolllock")
_QXL_RAM_KIB: Final = 65536
_QXL_VGA_KIB: Final = 16384
_KIB: Final = 1024


def read_displays(devices: Element, plan: Plan) -> None:
    """Read all of it; as under libvirt graphics bring a card, and there is always a place for sound to go."""
    graphics = [(element, element.choice("type", {"vnc": "vnc", "spice": "spice"})) for element in devices.children("graphics")]
    audio_ids = _read_audio(devices, plan, "spice" if any(kind == "spice" for _, kind in graphics) else "none")
    for element, kind in graphics:
        if kind == "spice":
            read_spice(element, plan)
        else:
            _read_vnc(element, plan, audio_ids)
    if not graphics:
        plan.head.append(text("display", "none"))
    videos = devices.children("video")
    index = 0
    for element in videos:
        index += _read_video(element, index, plan)
    if graphics and not videos:
        device = Device(devices, "video", {"driver": "cirrus-vga", "id": "video0"}, Slot.PCI)
        plan.add(device)
    for number, element in enumerate(devices.children("sound")):
        _read_sound(element, number, plan, audio_ids)
    number = 0
    for element in devices.children("input"):
        number += _read_input(element, number, plan)


def _read_vnc(element: Element, plan: Plan, audio_ids: list[str]) -> None:
    port = element.attribute("port")
    auto = element.choice("autoport", _YES_NO)
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
    if policy is not None:
        display["share"] = policy
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


def _read_video(element: Element, index: int, plan: Plan) -> int:
    model = element.get_child("model")
    endings = models("virtio")
    kind = model.choice("type", {name: name for name in (*_VIDEO, "none")})
    if kind is None:
        raise model.invalid("attribute type is missing")
    sizes = {name: model.number_attribute(name) for name in ("ram", "vram", "vram64", "vgamem", "heads")}
    model.choice("primary", _YES_NO)
    resolution = model.child("resolution")
    x_y = {} if resolution is None else {f"{axis}res": resolution.number_attribute(axis) for axis in "xy"}
    if resolution is not None:
        resolution.finish()
    acceleration = model.child("acceleration")
    if acceleration is not None:
        if acceleration.choice("accel3d", {"no": False}) is None:
            acceleration.accept("accel2d", "no")
        acceleration.finish()
    model.accept("blob", "off")
    model.finish()
    if (sizes["heads"] or 1) > 1 and kind not in ("virtio", "qxl"):
        raise model.invalid(f"heads {sizes['heads']}: a {kind} has one")
    if kind == "none":
        read_pci_address(element)
        read_alias(element, "")
        element.finish()
        return 0
    driver = _VIDEO[kind][0 if index == 0 else 1]
    properties: dict[str, object] = {"driver": driver}
    if kind == "virtio":
        properties |= read_driver(element)
    properties["id"] = read_alias(element, f"video{index}")
    properties |= _video_sizes(kind, sizes)
    properties |= {key: value for key, value in x_y.items() if value is not None}
    slot: Slot | None = slot_of(plan, endings["virtio"]) if kind in ("virtio", "bochs") else Slot.PCI
    address = None
    if kind == "ramfb":
        slot = None
    else:
        address = read_pci_address(element)
    element.finish()
    plan.add(Device(element, "video", properties, slot, address))
    return 1


def _video_sizes(kind: str, sizes: dict[str, int | None]) -> dict[str, object]:
    found: dict[str, object] = {}
    if kind in ("virtio", "qxl"):
        found["max_outputs"] = sizes["heads"] or 1
    if kind == "qxl":
        found["ram_size"] = _power_of_two(sizes["ram"] or _QXL_RAM_KIB) * _KIB
        found["vram_size"] = _power_of_two(sizes["vram"] or _QXL_RAM_KIB) * _KIB
        found["vram64_size_mb"] = (sizes["vram64"] or 0) // _KIB
        found["vgamem_mb"] = _power_of_two(sizes["vgamem"] or _QXL_VGA_KIB) // _KIB
    elif kind in ("vga", "vmvga") and sizes["vram"]:
        found["vgamem_mb"] = _power_of_two(sizes["vram"]) // _KIB
    elif kind == "bochs" and sizes["vram"]:
        found["vgamem"] = f"{_power_of_two(sizes['vram'])}k"
    return found


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _read_sound(element: Element, index: int, plan: Plan, audio_ids: list[str]) -> None:
    model = element.choice("model", {name: name for name in _SOUND})
    if model is None:
        raise element.invalid("attribute model is missing")
    codecs = []
    for entry in element.children("codec"):
        codecs.append(entry.choice("type", _CODECS) or "hda-duplex")
        entry.finish()
    audio = element.child("audio")
    audiodev = audio_ids[0]
    if audio is not None:
        audiodev = f"audio{audio.number_attribute('id')}"
        audio.finish()
        if audiodev not in audio_ids:
            raise audio.invalid(f"{audiodev} is not defined")
    name = read_alias(element, f"sound{index}")
    device = Device(element, "sound", {"driver": _SOUND[model], "id": name})
    if model.startswith("ich"):
        for number, codec in enumerate(codecs or ["hda-duplex"]):
            properties = {"driver": codec, "id": f"{name}-codec{number}", "bus": f"{name}.0", "cad": number, "audiodev": audiodev}
            device.after.append(of_json("device", properties))
    else:
        device.properties["audiodev"] = audiodev
    if model == "usb":
        device.properties |= read_usb(element)
    elif model != "sb16":
        device.pci, device.address = Slot.PCI, read_pci_address(element)
    element.finish()
    plan.add(device)


def _read_evdev(element: Element, index: int, plan: Plan) -> None:
    source = element.get_child("source")
    path = source.get_attribute("dev")
    with source.located():
        rules.check_path(path)
    properties: dict[str, object] = {"qom-type": "input-linux", "id": read_alias(element, f"input{index}"), "evdev": path}
    repeats = source.switch("repeat")
    if repeats is not None:
        properties["repeat"] = repeats
    if source.choice("grab", {"all": True}):
        properties["grab_all"] = True
    toggle = source.choice("grabToggle", {name: name for name in _TOGGLES})
    if toggle is not None:
        properties["grab-toggle"] = toggle
    source.finish()
    element.finish()
    plan.blockers.append(f"input device {path} of the host")
    plan.tail.append(of_json("object", properties))


def _read_audio(devices: Element, plan: Plan, default: str) -> list[str]:
    ids = []
    for index, element in enumerate(devices.children("audio"), start=1):
        given = element.number_attribute("id")
        name = f"audio{index if given is None else given}"
        kind = element.choice("type", {"none": "none", "file": "wav", "spice": "spice"}) or "none"
        properties: dict[str, object] = {"id": name, "driver": kind}
        period_us = element.number_attribute("timerPeriod")
        if period_us is not None:
            properties["timer-period"] = period_us
        path = element.attribute("path") if kind == "wav" else None
        if path is not None:
            with element.located():
                rules.check_path(path)
            properties["path"] = path
        for tag, key in (("input", "in"), ("output", "out")):
            side = element.child(tag)
            if side is not None:
                properties[key] = _read_voices(side)
        element.finish()
        ids.append(name)
        plan.head.append(of_json("audiodev", properties))
    if not ids:
        ids.append("audio1")
        plan.head.append(of_json("audiodev", {"id": "audio1", "driver": default}))
    return ids


def _read_voices(side: Element) -> dict[str, object]:
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
        sample = settings.choice("format", {name: name for name in ("s8", "u8", "s16", "u16", "s32", "u32", "f32")})
        if sample is not None:
            found["format"] = sample
        settings.finish()
    side.finish()
    return found


def _read_input(element: Element, index: int, plan: Plan) -> int:
    kind = element.choice("type", {name: name for name in (*_INPUTS, "passthrough", "evdev")})
    if kind is None:
        raise element.invalid("attribute type is missing")
    if kind == "evdev":
        _read_evdev(element, index, plan)
        return 1
    bus = element.choice("bus", {name: name for name in ("ps2", "usb", "virtio")})
    bus = bus or ("usb" if kind == "tablet" else "virtio" if kind == "passthrough" else "ps2")
    if bus == "ps2":
        if kind not in ("mouse", "keyboard"):
            raise element.attribute_not_carried("bus", "ps2")
        read_alias(element, "")  # every board has them
        element.finish()
        return 0
    name = read_alias(element, f"input{index}")
    if bus == "usb":
        if kind not in _INPUTS:
            raise element.attribute_not_carried("bus", "usb")
        plan.add(Device(element, "usb-input", {"driver": f"usb-{_INPUTS[kind]}", "id": name, **read_usb(element)}))
        element.finish()
        return 1
    endings = models("virtio")
    ending = element.choice("model", endings) or ""
    properties = read_driver(element)
    if kind == "passthrough":
        source = element.get_child("source")
        path = source.get_attribute("evdev")
        source.finish()
        with source.located():
            rules.check_path(path)
        properties["evdev"] = path
        plan.blockers.append(f"input device {path} of the host")
    driver = "virtio-input-host-pci" if kind == "passthrough" else f"virtio-{_VIRTIO_INPUTS[kind]}-pci{ending}"
    address = read_pci_address(element)
    element.finish()
    plan.add(Device(element, "input", {"driver": driver, **properties, "id": name}, slot_of(plan, ending), address))
    return 1
