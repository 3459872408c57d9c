"""Pinning fixes the board and every address."""

from __future__ import annotations

import pytest

from agent.vm.addresses import pin
from agent.vm.devices import PciAddress
from common.errors import InvalidRequest, WrongState
from tests.unit.agent.vm.samples import FACTS, FULL, domain, parse, pinned

DISK = "<disk type='file'><source file='/{0}'/><target dev='{0}'/>{1}</disk>"
CARD = "<interface type='user'><model type='virtio'/></interface>"
AT_2 = "<address type='pci' domain='0x0000' bus='0x00' slot='0x02' function='0x0'/>"


@pytest.mark.parametrize(
    ("name", "versioned"), [("pc", "pc-i440fx-7.2"), ("q35", "pc-q35-7.2"), ("pc-i440fx-7.1", "pc-i440fx-7.1")]
)
def test_a_machine_type_becomes_its_versioned_name(name: str, versioned: str) -> None:
    assert pinned(domain(machine=name)).machine == versioned


def test_a_machine_type_unknown_here_is_refused_by_name() -> None:
    with pytest.raises(WrongState, match=r"pc-q35-10\.0 is unknown") as raised:
        pinned(domain(machine="pc-q35-10.0"))

    assert raised.value.reason == "MACHINE_UNKNOWN"


def test_a_board_that_ferry_does_not_build_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="isapc is not carried"):
        pinned(domain(machine="isapc"))


def test_more_vcpus_than_the_machine_takes_are_refused() -> None:
    with pytest.raises(WrongState, match="256 vCPUs are wanted"):
        pinned(domain(inside="<vcpu>256</vcpu>"))


def test_devices_sit_in_libvirts_order_from_the_first_free_slot() -> None:
    devices = DISK.format("vda", "") + CARD + "<rng model='virtio'><backend model='builtin'/></rng>"

    definition = pinned(domain(machine="pc", devices=devices))

    assert [address and address.slot for address in definition.pci_addresses()] == [2, 3, 4, 5]
    assert definition.interfaces[0].address == PciAddress(0, 2, 0)
    assert definition.disks[0].address == PciAddress(0, 3, 0)
    assert definition.balloon is not None
    assert definition.balloon.address == PciAddress(0, 4, 0)


def test_a_given_address_is_kept_and_not_given_again() -> None:
    definition = pinned(domain(machine="pc", devices=DISK.format("vda", AT_2) + CARD))

    assert definition.disks[0].address == PciAddress(0, 2, 0)
    assert definition.interfaces[0].address == PciAddress(0, 3, 0)


def test_pinning_again_changes_nothing() -> None:
    definition = pinned(FULL)

    assert pin(definition, FACTS) == definition
    assert None not in definition.pci_addresses()


@pytest.mark.parametrize(("machine", "slot"), [("pc", 0), ("pc", 1), ("q35", 0), ("q35", 31)])
def test_slots_of_the_board_itself_are_refused(machine: str, slot: int) -> None:
    address = f"<address type='pci' bus='0' slot='{slot:#x}' function='0x0'/>"

    with pytest.raises(InvalidRequest) as raised:
        pinned(domain(machine=machine, devices=DISK.format("vda", address)))

    assert raised.value.reason == "PCI_ADDRESS_TAKEN"


def test_more_devices_than_slots_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="more devices than PCI slots"):
        pin(parse(domain(devices=CARD * 31)), FACTS)
