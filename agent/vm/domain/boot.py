"""`<os>`: kernel, firmware, boot order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.vm import rules
from agent.vm.domain.plan import Board
from agent.vm.options import keyval, of_json, text

if TYPE_CHECKING:
    from agent.vm.domain.plan import Plan
    from agent.vm.domain.reader import Element

DEFAULT_MACHINE: Final = "pc"
_DEVICES: Final = {name: name for name in ("hd", "cdrom", "network", "fd")}
_YES_NO: Final = {"yes": True, "no": False}
_FLASH_FORMATS: Final = {"raw": "raw", "qcow2": "qcow2"}
_SPLASH_LIMIT_MS: Final = 65535


def read_machine(os: Element) -> tuple[str, Board]:
    """Read `<type>`: the machine type, and the board it is of."""
    kind = os.get_child("type")
    kind.text_choice({"hvm": None})
    kind.accept("arch", "x86_64", "i686")  # a 32-bit guest runs on the same machine
    machine = kind.attribute("machine") or DEFAULT_MACHINE
    kind.finish()
    with kind.located():
        rules.check_word(machine, "machine type")
    if machine == "pc" or machine.startswith("pc-i440fx-"):
        return machine, Board.I440FX
    if machine == "q35" or machine.startswith("pc-q35-"):
        return machine, Board.Q35
    raise kind.attribute_not_carried("machine", machine)


def read_os(os: Element, plan: Plan) -> list[str]:
    """Read the rest of `<os>`; returns the kinds of devices to boot from, in order."""
    order = []
    for boot in os.children("boot"):
        order.append(boot.choice("dev", _DEVICES) or "hd")
        boot.finish()
    words: dict[str, object] = {}
    menu = os.child("bootmenu")
    if menu is not None:
        is_on = menu.choice("enable", _YES_NO)
        timeout_ms = menu.number_attribute("timeout")
        menu.finish()
        if is_on is not None:
            words["menu"] = is_on
        if timeout_ms is not None:
            if timeout_ms > _SPLASH_LIMIT_MS:
                raise menu.invalid(f"timeout {timeout_ms}: {_SPLASH_LIMIT_MS} ms is the most")
            words["splash-time"] = timeout_ms
    bios = os.child("bios")
    if bios is not None:
        reboot_ms = bios.number_attribute("rebootTimeout")
        bios.choice("useserial", {"no": False})
        bios.finish()
        if reboot_ms is not None:
            words["reboot-timeout"] = reboot_ms
    plan.head.append(keyval("boot", {**words, "strict": True}))
    _read_firmware(os, plan)
    _read_kernel(os, plan)
    os.finish()
    return order


def _read_kernel(os: Element, plan: Plan) -> None:
    found = {name: os.child(name) for name in ("kernel", "initrd", "cmdline")}
    texts = {name: element.text() for name, element in found.items() if element is not None}
    for name, element in found.items():
        if element is None:
            continue
        element.finish()
        with element.located():
            if name != "cmdline":
                rules.check_path(texts[name])
            else:
                rules.check_command_line(texts[name])
        if "kernel" not in texts:
            raise element.invalid(f"{name} needs a kernel")
        if name == "initrd" and "," in texts[name]:
            # A multiboot kernel's `-initrd` is a list with commas: the rest of the path would be another file.
            raise element.invalid(f"{texts[name]!r}: commas are refused")
    for name, option in (("kernel", "kernel"), ("initrd", "initrd"), ("cmdline", "append")):
        if name in texts:
            plan.head.append(text(option, texts[name]))


def _read_firmware(os: Element, plan: Plan) -> None:
    loader = os.child("loader")
    nvram = os.child("nvram")
    firmware = os.choice("firmware", {"bios": "bios", "efi": "efi"})
    path = None if loader is None else loader.text()
    if firmware == "efi" and not path:
        raise os.attribute_not_carried("firmware", "efi, without the paths of loader and nvram")
    if firmware is not None:
        _accept_choice(os)
    if loader is not None:
        _read_loader(loader, nvram, path or "", plan, has_default=firmware == "bios" and nvram is None)
    elif nvram is not None:
        raise nvram.invalid("nvram needs a loader")


def _read_loader(loader: Element, nvram: Element | None, path: str, plan: Plan, *, has_default: bool) -> None:
    kind = loader.choice("type", {"rom": "rom", "pflash": "pflash"}) or "rom"
    is_read_only = loader.choice("readonly", _YES_NO)
    is_secure = loader.choice("secure", _YES_NO)
    image_format = loader.choice("format", _FLASH_FORMATS) or "raw"
    is_stateless = loader.choice("stateless", _YES_NO)
    loader.finish()
    if not path:
        if has_default:  # QEMU's own
            return
        raise loader.invalid("the path of the firmware is missing")
    with loader.located():
        rules.check_path(path)
    if kind == "rom":
        if nvram is not None:
            raise nvram.invalid("nvram needs a loader of type pflash")
        plan.head.append(text("bios", path))
        return
    if is_read_only and nvram is None and not is_stateless:
        raise loader.invalid("nvram is missing: name the file of the variables, or say stateless='yes' where there is none")
    _add_flash(plan, 0, path, image_format, is_read_only=bool(is_read_only or is_stateless))
    if is_secure:
        plan.head.append(text("global", "driver=cfi.pflash01,property=secure,value=on"))
    if nvram is not None:
        variables, image_format = _read_nvram(nvram)
        _add_flash(plan, 1, variables, image_format, is_read_only=False)


def _accept_choice(os: Element) -> None:
    """Take what libvirt chose the firmware by, where its choice is written beside it."""
    wishes = os.child("firmware")
    if wishes is None:
        return
    for feature in wishes.children("feature"):
        feature.choice("enabled", _YES_NO)
        feature.accept("name")
        feature.finish()
    wishes.finish()


def _read_nvram(nvram: Element) -> tuple[str, str]:
    """Read where the variables are. What a template is for was done before: the file has to be there."""
    nvram.choice("type", {"file": None})
    image_format = nvram.choice("format", _FLASH_FORMATS) or "raw"
    nvram.accept("template")
    nvram.accept("templateFormat")
    path = nvram.text()
    source = nvram.child("source")
    if source is not None:
        if path:
            raise nvram.invalid("a path and a source")
        path = source.get_attribute("file")
        source.finish()
    nvram.finish()
    with nvram.located():
        rules.check_path(path)
    return path, image_format


def _add_flash(plan: Plan, index: int, path: str, image_format: str, *, is_read_only: bool) -> None:
    name = f"pflash{index}"
    plan.head.append(
        of_json("blockdev", {"driver": "file", "node-name": f"{name}-file", "filename": path, "read-only": is_read_only})
    )
    plan.head.append(
        of_json("blockdev", {"driver": image_format, "node-name": name, "file": f"{name}-file", "read-only": is_read_only})
    )
    plan.machine_properties[name] = name


def give_boot_order(plan: Plan, os: Element, order: list[str]) -> None:
    """Number the devices to boot from, as libvirt does: its own `<boot order>`, else the first of each kind in `<os>`."""
    own = [device for device in plan.devices if device.boot_index is not None]
    if own and order:
        raise os.invalid("boot order is given both in os and in devices")
    if not own:
        for index, kind in enumerate(dict.fromkeys(order or ["hd"]), start=1):
            first = next((device for device in plan.devices if device.boots_as == kind), None)
            if first is not None:
                first.boot_index = index
    for device in plan.devices:
        if device.boot_index is not None and device.boot_key == "bootindex":
            device.properties["bootindex"] = device.boot_index
    floppies = {
        device.boot_key: device.boot_index for device in plan.devices if device.boot_key != "bootindex" and device.boot_index
    }
    has_floppy = any(device.properties.get("driver") == "floppy" for device in plan.devices)
    if plan.board is Board.Q35 and has_floppy:
        plan.head.append(of_json("device", {"driver": "isa-fdc", **floppies}))
    elif floppies:
        plan.head += [text("global", f"isa-fdc.{key}={index}") for key, index in floppies.items()]


def ends_at_reboot(domain: Element, plan: Plan) -> None:
    """Read what is to happen when the guest powers off, reboots or crashes."""
    off = domain.child("on_poweroff")
    if off is not None:
        off.text_choice({"destroy": None})
        off.finish()
    reboot = domain.child("on_reboot")
    if reboot is not None:
        if reboot.text_choice({"restart": False, "destroy": True}):
            plan.head.append(keyval("action", {"reboot": "shutdown"}))
        reboot.finish()
    crash = domain.child("on_crash")
    if crash is not None:
        action = crash.text_choice({"destroy": "shutdown", "restart": "restart", "preserve": "pause"})
        crash.finish()
        if action == "pause":
            plan.head.append(keyval("action", {"panic": "pause"}))
        plan.restarts_on_crash = crash if action == "restart" else None


def check_crash(plan: Plan) -> None:
    """Refuse a restart after a crash where the guest has a device to tell of one; QEMU never hears of it elsewhere.

    Raises:
        NotCarried: it has.
    """
    if plan.restarts_on_crash is not None and (plan.of_kind("panic", "isa-panic") or plan.cpu_properties.get("hv-crash")):
        raise plan.restarts_on_crash.not_carried(value="restart, with a panic device")
