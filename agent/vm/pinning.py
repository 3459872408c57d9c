"""Completing a definition so that every host builds the same machine of it.

A machine type like `q35` means another board with each version of QEMU: it is fixed once, before the first start, and
kept. Addresses are fixed by the front ends already.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from common.errors import WrongState

if TYPE_CHECKING:
    from agent.qemu.binary import BinaryFacts
    from agent.vm.definition import Definition


def pin(definition: Definition, facts: BinaryFacts) -> Definition:
    """Give the definition a versioned machine type, and leave out what is switched off of a CPU and unknown to this QEMU anyway.

    Raises:
        WrongState: this QEMU does not know the machine type, or gives it fewer vCPUs.
    """
    machine = facts.find_machine(definition.machine)
    if machine is None:
        raise WrongState(
            f"machine type {definition.machine} is unknown to this host's QEMU",
            reason="MACHINE_UNKNOWN",
            machine=definition.machine,
        )
    most = max([definition.vcpu_count, *(int(str(value)) for key, value in definition.smp.items() if key == "maxcpus")])
    if most > machine.cpu_max_count:
        raise WrongState(
            f"{most} vCPUs are wanted, machine type {machine.name} takes {machine.cpu_max_count}",
            reason="TOO_MANY_VCPUS",
            machine=machine.name,
            most=machine.cpu_max_count,
        )
    cpu = definition.cpu
    known = {name: value for name, value in cpu.properties.items() if value is not False or is_known(name, facts)}
    return replace(definition, machine=machine.name, cpu=replace(cpu, properties=known))


def is_known(feature: str, facts: BinaryFacts) -> bool:
    """Say whether a QEMU has a feature of CPUs."""
    return bool({feature, feature.replace("_", "-")} & facts.cpu_properties)
