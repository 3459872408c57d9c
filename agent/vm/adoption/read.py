"""The command line of a running QEMU, option by option, to a draft. Pure but for links of network devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from agent.vm.adoption.backends import add_chardev, add_line, add_netdev, add_object
from agent.vm.adoption.blocks import DRIVES, Drives, add_blockdev, drive_words
from agent.vm.adoption.draft import Draft
from agent.vm.adoption.words import Given, last, parse_argument, parse_words
from agent.vm.options import ALLOWED, MONITOR_OBJECTS, Properties
from common.errors import WrongState

# Say how this process is run or watched, and nothing of the guest.
_DROPPED: Final = frozenset(
    {
        *(
            "D",
            "L",
            "S",
            "accel",
            "add-fd",
            "alt-grab",
            "async-teardown",
            "chroot",
            "ctrl-grab",
            "curses",
            "d",
            "daemonize",
            "dfilter",
        ),
        *(
            "enable-kvm",
            "enable-sync-profile",
            "full-screen",
            "gdb",
            "gtk",
            "incoming",
            "k",
            "loadvm",
            "mon",
            "monitor",
            "msg",
            "name",
        ),
        *(
            "no-quit",
            "no-user-config",
            "nodefconfig",
            "one-insn-per-tb",
            "perfmap",
            "jitdump",
            "pidfile",
            "plugin",
            "preconfig",
            "qmp",
        ),
        *("qmp-pretty", "run-with", "runas", "s", "sandbox", "sdl", "seed", "show-cursor", "singlestep", "trace", "writeconfig"),
    }
)
# Told by QEMU itself, and better.
_ASKED: Final = frozenset({"m", "smp"})
_FLAGS_OF_THE_MACHINE: Final = {"no-acpi": "acpi", "no-hpet": "hpet"}
_FILES: Final = frozenset({"kernel", "initrd", "dtb", "bios", "mem-path"})
# Source: ui/spice-core.c, qemu_spice_opts, without passwords, certificates and screens of the host.
_SPICE_KEYS: Final = frozenset(
    {
        *("addr", "agent-mouse", "disable-agent-file-xfer", "disable-copy-paste", "disable-ticketing", "image-compression"),
        *("ipv4", "ipv6", "jpeg-wan-compression", "plaintext-channel", "playback-compression", "port", "seamless-migration"),
        *("streaming-video", "unix", "video-codecs", "zlib-glz-wan-compression"),
    }
)
_DISPLAYS_KEPT: Final = ("none", "egl-headless")


def read_options(draft: Draft, options: tuple[Given, ...]) -> Drives:
    """Put every option into the draft, or a sentence on why not.

    Returns:
        The drives, with those that no option made.

    Raises:
        WrongState: an option says that more is written elsewhere.
    """
    given_drives = [drive_words(given.name, given.text) for given in options if given.name in DRIVES]
    drives = Drives(draft, given_drives, all_are_snapshots=any(given.name == "snapshot" for given in options))
    monitors = _monitors(options)
    special: dict[str, Callable[[Given], None]] = {
        **dict.fromkeys(DRIVES, lambda given: drives.add(drive_words(given.name, given.text))),
        "machine": lambda given: _add_machine(draft, given),
        "cpu": lambda given: setattr(draft, "cpu", given.text),
        "blockdev": lambda given: add_blockdev(draft, given.text),
        "device": lambda given: _add_device(draft, given),
        "chardev": lambda given: add_chardev(draft, given.text, monitors),
        "serial": lambda given: add_line(draft, "serial", given.text),
        "parallel": lambda given: add_line(draft, "parallel", given.text),
        "netdev": lambda given: add_netdev(draft, given.text),
        "object": lambda given: add_object(draft, given.text),
        "virtfs": lambda given: _add_virtfs(draft, given),
        "fsdev": lambda given: _add_fsdev(draft, parse_words(given.text, "fsdriver")),
        "display": lambda given: _add_display(draft, given),
        "vnc": lambda given: _add_vnc(draft, given.text),
        "spice": lambda given: _add_spice(draft, given),
        "nographic": lambda _: draft.machine.update(graphics="off"),
        "smbios": lambda given: draft.add(
            "smbios", draft.absolute_in(parse_words(given.text), frozenset({"file", "path"}), "-smbios")
        ),
        "fw_cfg": lambda given: draft.add(
            "fw_cfg", draft.absolute_in(parse_words(given.text, "name"), frozenset({"file"}), "-fw_cfg")
        ),
        "snapshot": lambda _: draft.blockers.append("-snapshot: the guest writes to files that only this QEMU has"),
        "readconfig": _refuse_config,
    }
    for given in options:
        if given.name in special:
            special[given.name](given)
        else:
            _add_other(draft, given)
    return drives


def _add_other(draft: Draft, given: Given) -> None:
    name = given.name
    if name in _FLAGS_OF_THE_MACHINE:
        draft.machine[_FLAGS_OF_THE_MACHINE[name]] = "off"
        draft.changed.append(f"-{name}: -machine {_FLAGS_OF_THE_MACHINE[name]}=off, which newer versions have instead")
    elif name in _DROPPED:
        draft.dropped.append(str(given))
    elif name in _ASKED:
        pass
    elif name in _FILES:
        draft.add_text(name, _firmware(draft, given) if name == "bios" else draft.absolute(given.text, f"-{name}"))
    elif name in ("net", "nic"):
        kind = last(parse_words(given.text, "type").get("type"))
        if kind in ("tap", "bridge", "vhost-user", "l2tpv3"):
            draft.blockers.append(f"{given}: give a {kind} by -netdev and -device, which can be carried")
        draft.add_text(name, given.text)
    elif name in ALLOWED:
        draft.add_text(name, given.value)
    else:
        draft.blockers.append(f"{given}: this option is not carried")


def _monitors(options: tuple[Given, ...]) -> set[str]:
    """Find the character devices that monitors have and nobody else."""
    own = {last(parse_words(given.text, "chardev").get("chardev")) for given in options if given.name == "mon"}
    own |= {given.text.removeprefix("chardev:") for given in options if given.name in ("qmp", "monitor")}
    for given in options:
        if given.name == "object" and last(parse_argument(given.text, "qom-type")[0].get("qom-type")) in MONITOR_OBJECTS:
            own.add(last(parse_argument(given.text, "qom-type")[0].get("chardev")))
    for given in options:
        if given.name in ("serial", "parallel"):
            own.discard(given.text.removeprefix("chardev:"))
        elif given.name in ("device", "netdev", "object"):
            properties, _ = parse_argument(given.text, "driver")
            if last(properties.get("driver")) not in MONITOR_OBJECTS and last(properties.get("qom-type")) not in MONITOR_OBJECTS:
                own.discard(last(properties.get("chardev")))
    return own


def _add_machine(draft: Draft, given: Given) -> None:
    for key, value in parse_words(given.text, "type").items():
        if key == "accel":
            draft.dropped.append(f"-machine accel={last(value)}: the guest goes on with the accelerator that it has")
        elif key != "type" and not key.startswith(("memory.", "smp.")):
            draft.machine[key] = last(value)


def _add_device(draft: Draft, given: Given) -> None:
    properties, is_json = parse_argument(given.text, "driver")
    draft.add("device", properties, is_json=is_json)


def _add_virtfs(draft: Draft, given: Given) -> None:
    """Write `-virtfs` as the two options that it is short for. Source: softmmu/vl.c, QEMU_OPTION_virtfs."""
    properties = parse_words(given.text, "fsdriver")
    tag = last(properties.pop("mount_tag", ""))
    name = last(properties.setdefault("id", tag))
    _add_fsdev(draft, properties)
    draft.add("device", {"driver": "virtio-9p-pci", "fsdev": name, "mount_tag": tag})
    draft.changed.append(f"-virtfs {tag}: written as -fsdev and -device, to fix the address")


def _add_fsdev(draft: Draft, properties: Properties) -> None:
    name = last(properties.get("id"))
    draft.add("fsdev", draft.absolute_in(properties, frozenset({"path", "socket"}), f"-fsdev {name}"))
    draft.blockers.append(f"-fsdev {name}: QEMU does not migrate a guest that has mounted a file system of its host")


def _add_display(draft: Draft, given: Given) -> None:
    kind, _, rest = given.text.partition("=")
    if kind == "vnc":
        _add_vnc(draft, rest)
    elif given.text.startswith(_DISPLAYS_KEPT):
        draft.add_text("display", given.text)
    else:
        draft.changed.append(f"-display {given.text}: none, as there is no such screen on another host")


def _add_vnc(draft: Draft, text: str) -> None:
    if text.startswith("unix:"):
        words = parse_words(text.removeprefix("unix:"), "path")
        path = draft.absolute(last(words.pop("path")), "-vnc")
        rest = "".join(f",{key}={last(value)}" for key, value in words.items())
        text = f"unix:{path}{rest}"
    draft.add_text("vnc", text)


def _add_spice(draft: Draft, given: Given) -> None:
    words = parse_words(given.text)
    if kept_out := words.keys() - _SPICE_KEYS:
        draft.blockers.append(f"-spice: {', '.join(sorted(kept_out))}: passwords and certificates are not carried")
        return
    draft.add("spice", draft.absolute_in(words, frozenset({"addr"}), "-spice") if words.get("unix") == "on" else words)


def _firmware(draft: Draft, given: Given) -> str:
    """Find a firmware by its file or by its name in QEMU's directories. Source: softmmu/vl.c, qemu_find_file()."""
    for directory in (draft.found.directory, "/usr/share/seabios", "/usr/share/qemu", "/usr/share/OVMF"):
        path = Path(directory, given.text)
        if path.exists():
            if str(path) != given.text:
                draft.changed.append(f"-bios: {given.text} is {path}")
            return str(path)
    draft.blockers.append(f"-bios {given.text}: no such file is found now")
    return draft.found.absolute(given.text)


def _refuse_config(given: Given) -> None:
    raise WrongState(
        f"-readconfig {given.text}: what it says is not on the command line and cannot be asked of QEMU; start the VM with those "
        "options written out, or define it from libvirt XML",
        reason="CONFIG_FILE_NOT_CARRIED",
        path=given.text,
    )
