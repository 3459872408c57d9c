"""A definition and a host's side of it to QEMU's command line.

Pure and deterministic. What came from a definition appears only as a whole argument, inside JSON, or with its commas
doubled, and passed `options` before: it cannot become an option.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.vm.definition import Accelerator, CpuMode
from agent.vm.options import FREE_PORT, RUN_DIR, RUN_DIR_OPTIONS, double_commas, to_json, write_keyval
from common.errors import Bug

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from agent.vm.definition import Definition, Tap
    from agent.vm.options import Option

QMP_CHARDEV = "qmp0"
# With these QEMU does not start under TCG. Source: target/i386/cpu.c, hw/hyperv/hyperv.c.
_NOT_UNDER_TCG = frozenset({"enforce", "hv-synic", "hv-vpindex"})


@dataclass(frozen=True, slots=True)
class TapFds:
    """The open descriptors behind one netdev, one of each for a queue; none of `vhost` without vhost."""

    tap: Sequence[int]
    vhost: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class HostSide:
    """What the host adds to a definition; the guest can tell none of it but the accelerator.

    Attributes:
        binary: absolute path of QEMU.
        accelerator: how the guest's code is run.
        qmp_fd: bound UNIX socket that QEMU will listen on; None for one that it makes itself in `run_dir`.
        is_incoming: wait for a migration.
        run_dir: directory for sockets of this VM; stands where the definition says `options.RUN_DIR`.
        starts_paused: leave the vCPUs stopped; always so when incoming.
        spice_port: a free port; stands where the definition says `options.FREE_PORT`.
        tap_fds: open tap devices by the id of their netdev; QEMU opens one that is not there by itself.
    """

    binary: str
    accelerator: Accelerator
    qmp_fd: int | None
    run_dir: str = "/run/ferry"
    is_incoming: bool = False
    starts_paused: bool = False
    spice_port: int = 5900
    tap_fds: Mapping[str, TapFds] = field(default_factory=dict)


def build(definition: Definition, host: HostSide) -> tuple[str, ...]:
    """Build the command line of a pinned definition, the program's name first."""
    return (
        host.binary,
        *_process(definition, host),
        *_machine(definition, host),
        *_options(definition, host),
        *_start(host),
    )


def _process(definition: Definition, host: HostSide) -> Iterator[str]:
    # fmt: off
    yield from ("-name", f"guest={double_commas(definition.name)},debug-threads=on")
    yield "-no-user-config"
    yield from ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
    place = f"path={host.run_dir}/qmp" if host.qmp_fd is None else f"fd={host.qmp_fd}"
    yield from ("-chardev", f"socket,id={QMP_CHARDEV},{place},server=on,wait=off")
    yield from ("-mon", f"chardev={QMP_CHARDEV},mode=control")
    # fmt: on


def _machine(definition: Definition, host: HostSide) -> Iterator[str]:
    slots = definition.memory_slots
    room = "" if slots is None else f",slots={slots.count},maxmem={slots.max_kib}k"
    # fmt: off
    yield from ("-machine", _with_properties(definition.machine, definition.machine_properties))
    yield from ("-accel", host.accelerator.value)
    yield from ("-cpu", cpu_words(definition, host.accelerator))
    yield from ("-m", f"size={definition.memory_kib}k{room}")
    yield from ("-smp", _with_properties(str(definition.vcpu_count), definition.smp))
    # fmt: on


def cpu_model(definition: Definition, accelerator: Accelerator) -> str:
    """Name QEMU's CPU model for the definition.

    TCG has no `host`: there the most that TCG can do stands for it.
    """
    cpu = definition.cpu
    match cpu.mode:
        case CpuMode.CUSTOM:
            if cpu.model is None:
                raise Bug("a custom CPU without a model")
            return cpu.model
        case CpuMode.MAXIMUM:
            return "max"
        case CpuMode.HOST_MODEL | CpuMode.HOST_PASSTHROUGH:
            return "host" if accelerator is Accelerator.KVM else "max"


def cpu_words(definition: Definition, accelerator: Accelerator) -> str:
    """Write the argument of `-cpu`: the model, then its properties.

    A guest that was to have KVM and has not gets what TCG has of a model, as it gets what TCG has of the host's CPU.
    """
    properties = definition.cpu.properties
    if definition.prefers_kvm and accelerator is Accelerator.TCG:
        properties = {key: value for key, value in properties.items() if key not in _NOT_UNDER_TCG}
    return _with_properties(cpu_model(definition, accelerator), properties)


def _options(definition: Definition, host: HostSide) -> Iterator[str]:
    taps = {tap.netdev: tap for tap in definition.taps}
    for option in definition.options:
        tap = taps.get(option.get("id")) if option.name == "netdev" else None
        if tap is not None:
            yield from _with_descriptors(option, tap, host)
        elif option.name in RUN_DIR_OPTIONS:
            written = (word.replace(RUN_DIR, host.run_dir) for word in option.write())
            yield from (word.replace(FREE_PORT, str(host.spice_port)) for word in written) if option.name == "spice" else written
        else:
            yield from option.write()


def _with_descriptors(option: Option, tap: Tap, host: HostSide) -> tuple[str, str]:
    given = host.tap_fds.get(tap.netdev)
    if given is None:
        return ("-netdev", to_json({**option.properties, **_opened_by_qemu(tap)}))
    fds: dict[str, object] = {"fd": str(given.tap[0])} if tap.queue_count == 1 else {"fds": ":".join(map(str, given.tap))}
    vhost: dict[str, object] = {}
    if tap.has_vhost:
        vhost = {"vhost": True}
        vhost |= {"vhostfd": str(given.vhost[0])} if tap.queue_count == 1 else {"vhostfds": ":".join(map(str, given.vhost))}
    return ("-netdev", to_json({**option.properties, **fds, **vhost}))


def _opened_by_qemu(tap: Tap) -> dict[str, object]:
    wanted = {"ifname": tap.device, "vhost": tap.has_vhost or None, "queues": tap.queue_count if tap.queue_count > 1 else None}
    return {"script": "no", "downscript": "no", **{key: value for key, value in wanted.items() if value is not None}}


def _with_properties(word: str, properties: Mapping[str, object]) -> str:
    return ",".join(filter(None, (word, write_keyval(properties))))


def _start(host: HostSide) -> Iterator[str]:
    if host.is_incoming:
        yield from ("-incoming", "defer")
    if host.is_incoming or host.starts_paused:
        yield "-S"
