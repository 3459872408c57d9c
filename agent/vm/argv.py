"""A definition and a host's side of it to QEMU's command line.

Pure and deterministic. What came from a definition appears only as a whole argument, inside JSON, or with its commas
doubled, and passed `rules` before: it cannot become an option.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.vm.addresses import board_of
from agent.vm.definition import Accelerator, CpuMode
from agent.vm.device_argv import device_options, double_commas
from common.errors import Bug

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent.vm.definition import Definition

QMP_CHARDEV = "qmp0"
_ON_OFF = {True: "on", False: "off"}


@dataclass(frozen=True, slots=True)
class HostSide:
    """What the host adds to a definition; the guest can tell none of it but the accelerator.

    Attributes:
        binary: absolute path of QEMU.
        accelerator: how the guest's code is run.
        qmp_fd: bound UNIX socket that QEMU will listen on.
        is_incoming: wait for a migration.
        starts_paused: leave the vCPUs stopped; always so when incoming.
        tap_fds: open tap devices by the MAC address of their card.
    """

    binary: str
    accelerator: Accelerator
    qmp_fd: int
    is_incoming: bool = False
    starts_paused: bool = False
    tap_fds: Mapping[str, int] = field(default_factory=dict)


def build(definition: Definition, host: HostSide) -> tuple[str, ...]:
    """Build the command line of a pinned definition, the program's name first."""
    return (
        host.binary,
        *_process(definition, host),
        *_machine(definition, host),
        *_clocks(definition),
        *_boot(definition),
        *device_options(definition, board_of(definition.machine), host.tap_fds),
        *_start(host),
    )


def _process(definition: Definition, host: HostSide) -> Iterator[str]:
    # fmt: off
    yield from ("-name", f"guest={double_commas(definition.name)},debug-threads=on")
    yield from ("-uuid", str(definition.uuid))
    yield "-nodefaults"
    yield "-no-user-config"
    yield from ("-display", "none")
    yield from ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
    yield from ("-chardev", f"socket,id={QMP_CHARDEV},fd={host.qmp_fd},server=on,wait=off")
    yield from ("-mon", f"chardev={QMP_CHARDEV},mode=control")
    # fmt: on


def _machine(definition: Definition, host: HostSide) -> Iterator[str]:
    topology = definition.topology
    count = definition.vcpu_count
    sockets = f"sockets={count},cores=1,threads=1"
    if topology is not None:
        inside = f"dies={topology.die_count},cores={topology.core_count},threads={topology.thread_count}"
        sockets = f"sockets={topology.socket_count},{inside}"
    # fmt: off
    yield from ("-machine", ",".join((definition.machine, "usb=off", *_board_switches(definition))))
    yield from ("-accel", host.accelerator.value)
    yield from ("-cpu", ",".join(cpu_words(definition, host.accelerator)))
    yield from ("-m", f"{definition.memory_kib}k")
    yield from ("-smp", f"{count},{sockets}")
    # fmt: on


def _board_switches(definition: Definition) -> Iterator[str]:
    features = definition.features
    for name, state in (
        ("acpi", features.acpi),
        ("hpet", features.hpet),
        ("smm", features.smm),
        ("vmport", features.vmport),
    ):
        if state is not None:
            yield f"{name}={_ON_OFF[state]}"


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


def cpu_words(definition: Definition, accelerator: Accelerator) -> Iterator[str]:
    """Write the parts of `-cpu`: the model, then the switches."""
    cpu = definition.cpu
    yield cpu_model(definition, accelerator)
    if cpu.is_migratable is not None:
        yield f"migratable={_ON_OFF[cpu.is_migratable]}"
    for feature in cpu.features:
        yield f"{feature.name}={_ON_OFF[feature.is_on]}"
    if definition.features.pmu is not None:
        yield f"pmu={_ON_OFF[definition.features.pmu]}"
    if cpu.is_enforced:
        yield "enforce=on"


def _clocks(definition: Definition) -> Iterator[str]:
    clock, features = definition.clock, definition.features
    power_device = board_of(definition.machine).power_device
    drift = "" if clock.rtc_catches_up is None else f",driftfix={'slew' if clock.rtc_catches_up else 'none'}"
    # fmt: off
    yield from ("-rtc", f"base={clock.base.value}{drift}")
    if clock.pit_delays_ticks is not None:
        yield from ("-global", f"kvm-pit.lost_tick_policy={'delay' if clock.pit_delays_ticks else 'discard'}")
    if features.suspend_to_memory is not None:
        yield from ("-global", f"{power_device}.disable_s3={int(not features.suspend_to_memory)}")
    if features.suspend_to_disk is not None:
        yield from ("-global", f"{power_device}.disable_s4={int(not features.suspend_to_disk)}")
    # fmt: on


def _boot(definition: Definition) -> Iterator[str]:
    boot = definition.boot
    # fmt: off
    yield from ("-boot", "strict=on")
    if boot.ends_at_reboot:
        yield from ("-action", "reboot=shutdown")
    if boot.firmware is not None:
        yield from ("-bios", boot.firmware)
    if boot.kernel is not None:
        yield from ("-kernel", boot.kernel)
    if boot.initrd is not None:
        yield from ("-initrd", boot.initrd)
    if boot.cmdline is not None:
        yield from ("-append", boot.cmdline)
    # fmt: on


def _start(host: HostSide) -> Iterator[str]:
    if host.is_incoming:
        yield from ("-incoming", "defer")
    if host.is_incoming or host.starts_paused:
        yield "-S"
