"""What a person sees and types with: `<graphics>`, `<video>`, `<input>`, and beside them `<sound>`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.vm import rules
from agent.vm.domain.addresses import read_alias, read_pci_address
from agent.vm.domain.audio import read_sound
from agent.vm.domain.controllers import read_usb
from agent.vm.domain.graphics import read_graphics
from agent.vm.domain.plan import Device, Slot
from agent.vm.domain.virtio import models, read_driver, slot_of
from agent.vm.options import of_json

if TYPE_CHECKING:
    from agent.vm.domain.plan import Plan
    from agent.vm.domain.reader import Element

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
_VIDEO_GL: Final = {"virtio": ("virtio-vga-gl", "virtio-gpu-gl-pci")}
_INPUTS: Final = {"mouse": "mouse", "tablet": "tablet", "keyboard": "kbd"}
_VIRTIO_INPUTS: Final = {"mouse": "mouse", "tablet": "tablet", "keyboard": "keyboard"}
_TOGGLES: Final = ("ctrl-ctrl", "alt-alt", "shift-shift", "meta-meta", "scrolllock", "ctrl-scrolllock")
_QXL_RAM_KIB: Final = 65536
_QXL_VGA_KIB: Final = 16384
_KIB: Final = 1024


def read_displays(devices: Element, plan: Plan) -> None:
    """Read all of it; as under libvirt graphics bring a card, and there is always a place for sound to go."""
    has_graphics, audio_ids = read_graphics(devices, plan)
    videos = devices.children("video")
    index = 0
    for element in videos:
        index += _read_video(element, index, plan)
    if has_graphics and not videos:
        device = Device(devices, "video", {"driver": "cirrus-vga", "id": "video0"}, Slot.PCI)
        plan.add(device)
    for number, element in enumerate(devices.children("sound")):
        read_sound(element, number, plan, audio_ids)
    number = 0
    for element in devices.children("input"):
        number += _read_input(element, number, plan)


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
    is_accelerated = _read_acceleration(model, kind)
    has_blobs = model.switch("blob") if kind == "virtio" else None
    model.finish()
    if (sizes["heads"] or 1) > 1 and kind not in ("virtio", "qxl"):
        raise model.invalid(f"heads {sizes['heads']}: a {kind} has one")
    if kind == "none":
        read_pci_address(element)
        read_alias(element, "")
        element.finish()
        return 0
    driver = (_VIDEO_GL if is_accelerated else _VIDEO)[kind][0 if index == 0 else 1]
    properties: dict[str, object] = {"driver": driver}
    if is_accelerated:
        plan.blockers.append(f"video card {index} with 3D acceleration: QEMU does not migrate virgl")
    if kind == "virtio":
        properties |= read_driver(element)
    properties["id"] = read_alias(element, f"video{index}")
    properties |= _video_sizes(kind, sizes)
    if has_blobs is not None:
        properties["blob"] = has_blobs
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


def _read_acceleration(model: Element, kind: str) -> bool:
    acceleration = model.child("acceleration")
    if acceleration is None:
        return False
    is_accelerated = acceleration.choice("accel3d", {"no": False, "yes": True}) or False
    acceleration.accept("accel2d", "no")
    if is_accelerated and kind != "virtio":
        raise acceleration.attribute_not_carried("accel3d", "yes")
    acceleration.finish()
    return is_accelerated


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
        found["vgamem"] = _power_of_two(sizes["vram"]) * _KIB
    return found


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


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
