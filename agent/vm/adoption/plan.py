"""A running QEMU to a definition that starts one like it elsewhere, and what is to be said about the difference.

Every default that QEMU filled in is written down: the definition says `-nodefaults` and names the default devices
themselves, so that a device more or less does not bring or cost another one. Every device gets the address that it has.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4

from agent.vm import argv
from agent.vm.adoption.backends import add_line, add_new_netdevs, add_new_objects
from agent.vm.adoption.blocks import Drives, add_default_drives, add_new_nodes
from agent.vm.adoption.devices import add_disks, add_plugged, add_sound, place_devices, rename_drives, used_nodes
from agent.vm.adoption.draft import Draft
from agent.vm.adoption.read import read_options
from agent.vm.adoption.words import last, parse_words, split_options
from agent.vm.definition import Accelerator, Cpu, CpuMode, Definition, MemorySlots
from agent.vm.options import flag

if TYPE_CHECKING:
    from agent.vm.adoption.facts import Facts
    from agent.vm.adoption.found import Found
    from agent.vm.options import Properties

_VGA: Final = {"VGA": "std", "cirrus-vga": "cirrus", "qxl-vga": "qxl", "virtio-vga": "virtio", "vmware-svga": "vmware"}
_CPU_MODES: Final = {"host": CpuMode.HOST_PASSTHROUGH, "max": CpuMode.MAXIMUM}
_ALL_HAVE: Final = frozenset({"sockets", "cores", "threads"})
_SHAPES: Final = ("sockets", "dies", "modules", "clusters", "cores", "threads")
_BOARDS: Final = ("pc-i440fx-", "pc-q35-")
_FIRST_SHOWN_FD: Final = 3


@dataclass(frozen=True, slots=True)
class AdoptionPlan:
    """What adopting a QEMU would do.

    Attributes:
        dropped: options that are not part of the definition.
        changed: options that are written otherwise than they were given.
    """

    definition: Definition
    found: Found
    dropped: tuple[str, ...]
    changed: tuple[str, ...]

    def command_line(self) -> tuple[str, ...]:
        """Write the command line of the QEMU that would take the guest in."""
        taps = {tap.netdev: argv.TapFds(range(tap.queue_count), range(tap.queue_count)) for tap in self.definition.taps}
        host = argv.HostSide(
            binary=self.found.binary,
            accelerator=self.definition.accelerator or Accelerator.TCG,
            qmp_fd=_FIRST_SHOWN_FD,
            is_incoming=True,
            tap_fds=taps,
        )
        return argv.build(self.definition, host)


def plan_adoption(found: Found, facts: Facts, name: str) -> AdoptionPlan:
    """Make the definition of a running QEMU; an empty `name` takes QEMU's own, else one made of its pid.

    Raises:
        InvalidRequest: the command line has something that no definition may have; the text names it.
        WrongState: part of what runs is written in a config file.
    """
    draft = Draft(found, facts)
    options = split_options(found.argv[1:])
    drives = read_options(draft, options)
    has_defaults = not draft.has("nodefaults")
    is_nographic = any(given.name == "nographic" for given in options)
    if has_defaults:
        _add_defaults(draft, drives, is_nographic=is_nographic)
    if not draft.has("display"):
        draft.add_text("display", "none")
    place_devices(draft)
    add_new_objects(draft)
    add_new_netdevs(draft)
    renamed = add_new_nodes(draft, used_nodes(draft))
    rename_drives(draft, renamed)
    add_plugged(draft, renamed)
    add_disks(draft, renamed)
    add_sound(draft)
    _check_process(draft)
    return AdoptionPlan(_definition(draft, name), found, tuple(draft.dropped), tuple(draft.changed))


def _add_defaults(draft: Draft, drives: Drives, *, is_nographic: bool) -> None:
    built_in = draft.facts.built_in
    if "isa-serial" in built_in and not draft.has("serial"):
        add_line(draft, "serial", "stdio" if is_nographic else "vc")
    if "isa-parallel" in built_in and not draft.has("parallel"):
        add_line(draft, "parallel", "null")
    if not draft.has("vga"):
        for kind in sorted(built_in & _VGA.keys()):
            draft.add_text("vga", _VGA[kind])
    if not draft.has("net", "nic", "netdev") and "hub0port" in draft.facts.network:
        draft.add_text("net", "nic")
        draft.add_text("net", "user")
    add_default_drives(draft, drives)
    draft.options.insert(0, flag("nodefaults"))
    draft.changed.append("-nodefaults: added; the devices that QEMU made by itself are named instead")


def _check_process(draft: Draft) -> None:
    found = draft.found
    if not draft.facts.machine.startswith(_BOARDS):
        draft.blockers.append(f"machine type {draft.facts.machine}: only boards of type pc and q35 are built again")
    if found.is_apart:
        draft.blockers.append(f"process {found.identity.pid} has another root or mount namespace: its paths mean other files here")
    if found.uid != os.geteuid():
        draft.blockers.append(
            f"process {found.identity.pid} runs as user {found.uid} and the agent as {os.geteuid()}: "
            "it cannot read the agent's keys and sockets"
        )


def _definition(draft: Draft, name: str) -> Definition:
    facts = draft.facts
    slots = None if facts.memory_slots is None else MemorySlots(*facts.memory_slots)
    uuid = UUID(facts.uuid) if facts.uuid else uuid4()
    smp: Properties = {key: facts.smp[key] for key in _SHAPES if facts.smp.get(key, 1) > 1 or key in _ALL_HAVE}
    _tell_pins(draft)
    return Definition(
        name=name or facts.name or f"qemu-{draft.found.identity.pid}",
        uuid=uuid,
        emulator=None,
        prefers_kvm=facts.accelerator is Accelerator.KVM,
        accelerator=facts.accelerator,
        machine=facts.machine,
        machine_properties=draft.machine,
        cpu=_cpu(draft),
        memory_kib=facts.memory_kib,
        current_memory_kib=facts.current_memory_kib,
        memory_slots=slots,
        vcpu_count=facts.smp["cpus"],
        smp={**smp, "maxcpus": facts.smp["maxcpus"]},
        cpu_shares=None,
        options=tuple(draft.options),
        disks=tuple(draft.disks),
        taps=tuple(draft.taps),
        blockers=tuple(draft.blockers),
    )


def _tell_pins(draft: Draft) -> None:
    draft.changed.append(f"-machine: {draft.facts.machine}, the type that runs")
    if draft.cpu is None:
        draft.changed.append(f"-cpu: {draft.facts.cpu_model}, the default of the machine type")


def _cpu(draft: Draft) -> Cpu:
    """Read `-cpu`; `+x` and `-x` count after all others, `-x` last. Source: target/i386/cpu.c, x86_cpu_parse_featurestr()."""
    words = (draft.cpu or draft.facts.cpu_model).split(",")
    properties: Properties = {}
    plus, minus = [], []
    for word in words[1:]:
        if word.startswith("+"):
            plus.append(word[1:])
        elif word.startswith("-"):
            minus.append(word[1:])
        else:
            properties |= {key.replace("_", "-"): last(value) for key, value in parse_words(word).items()}
    for names, value in ((plus, "on"), (minus, "off")):
        for feature in names:
            properties.pop(feature.replace("_", "-"), None)
            properties[feature.replace("_", "-")] = value
    mode = _CPU_MODES.get(words[0], CpuMode.CUSTOM)
    return Cpu(mode, words[0] if mode is CpuMode.CUSTOM else None, properties)
