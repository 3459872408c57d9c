"""Completing a definition so that every host builds the same machine of it.

A machine type like `q35` means another board with each version of QEMU, and a device without an address sits where
there is room: both are fixed once, before the first start, and kept. All devices sit on bus 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent.vm.devices import PciAddress
from common.errors import InvalidRequest, WrongState

if TYPE_CHECKING:
    from agent.qemu.binary import BinaryFacts
    from agent.vm.definition import Definition

_SLOT_COUNT = 32


@dataclass(frozen=True, slots=True)
class Board:
    """What a family of machine types has on PCI bus 0 by itself.

    Source: hw/i386/pc_piix.c (host bridge, PIIX3 or PIIX4 functions), hw/i386/pc_q35.c (host bridge, ICH9).
    """

    prefix: str
    bus_name: str
    taken_slots: frozenset[int]
    power_device: str


I440FX = Board("pc-i440fx-", "pci.0", frozenset({0, 1}), "PIIX4_PM")
Q35 = Board("pc-q35-", "pcie.0", frozenset({0, 31}), "ICH9-LPC")


def board_of(machine: str) -> Board:
    """Find the board of a versioned machine type.

    Raises:
        InvalidRequest: it belongs to no family that Ferry builds.
    """
    for board in (I440FX, Q35):
        if machine.startswith(board.prefix):
            return board
    raise InvalidRequest(
        f"machine type {machine} is not carried; pc (i440fx) and q35 types are",
        reason="MACHINE_NOT_CARRIED",
        machine=machine,
    )


def pin(definition: Definition, facts: BinaryFacts) -> Definition:
    """Give the definition a versioned machine type and each PCI device an address; change nothing that is there.

    Raises:
        WrongState: this QEMU does not know the machine type, or gives it fewer vCPUs.
        InvalidRequest: the board is not carried, a slot is taken, or there are more devices than slots.
    """
    machine = facts.find_machine(definition.machine)
    if machine is None:
        raise WrongState(
            f"machine type {definition.machine} is unknown to this host's QEMU",
            reason="MACHINE_UNKNOWN",
            machine=definition.machine,
        )
    board = board_of(machine.name)
    if definition.vcpu_count > machine.cpu_max_count:
        raise WrongState(
            f"{definition.vcpu_count} vCPUs are wanted, machine type {machine.name} takes {machine.cpu_max_count}",
            reason="TOO_MANY_VCPUS",
            machine=machine.name,
            most=machine.cpu_max_count,
        )
    slots = _Slots(board, definition)
    # libvirt's order, so that a definition without addresses becomes the same machine under both.
    interfaces = tuple(replace(interface, address=slots.of(interface.address)) for interface in definition.interfaces)
    virtio_serial = slots.of(definition.virtio_serial_address) if definition.consoles else None
    disks = tuple(replace(disk, address=slots.of(disk.address)) for disk in definition.disks)
    balloon = definition.balloon and replace(definition.balloon, address=slots.of(definition.balloon.address))
    rngs = tuple(replace(rng, address=slots.of(rng.address)) for rng in definition.rngs)
    return replace(
        definition,
        machine=machine.name,
        interfaces=interfaces,
        virtio_serial_address=virtio_serial,
        disks=disks,
        balloon=balloon,
        rngs=rngs,
    )


class _Slots:
    def __init__(self, board: Board, definition: Definition) -> None:
        self._taken = set(board.taken_slots)
        for address in definition.pci_addresses():
            if address is None:
                continue
            if address.bus != 0 or address.function != 0 or address.slot in board.taken_slots:
                raise InvalidRequest(
                    f"PCI address {address} cannot be given to a device of {board.prefix}*",
                    reason="PCI_ADDRESS_TAKEN",
                    address=address,
                )
            self._taken.add(address.slot)

    def of(self, address: PciAddress | None) -> PciAddress:
        if address is not None:
            return address
        for slot in range(_SLOT_COUNT):
            if slot not in self._taken:
                self._taken.add(slot)
                return PciAddress(bus=0, slot=slot, function=0)
        raise InvalidRequest("more devices than PCI slots", reason="PCI_SLOTS_EXHAUSTED")
