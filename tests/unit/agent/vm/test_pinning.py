"""Machine types are fixed, and devices sit where libvirt puts them."""

from __future__ import annotations

import pytest

from agent.vm.domain.reader import NotCarried
from agent.vm.pinning import pin
from common.errors import InvalidRequest, WrongState
from tests.unit.agent.vm.samples import FACTS, FULL, NOTHING, domain, parse, pinned

NO_USB = "<controller type='usb' model='none'/>"
DISK = "<disk type='file'><source file='/{0}'/><target dev='{0}'/>{1}</disk>"
CARD = "<interface type='user'><model type='virtio'/></interface>"
AT_2 = "<address type='pci' domain='0x0000' bus='0x00' slot='0x02' function='0x0'/>"


def places(devices: str, machine: str = "pc") -> dict[str, str]:
    """Say where each PCI device sits."""
    found = parse(domain(devices=devices, machine=machine)).find("device")
    return {device.get("id"): f"{device.get('bus')} {device.get('addr')}" for device in found if device.get("addr")}


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
    with pytest.raises(NotCarried, match="'isapc' is not carried"):
        pinned(domain(machine="isapc"))


@pytest.mark.parametrize("vcpu", ["<vcpu>256</vcpu>", "<vcpu current='1'>256</vcpu>"])
def test_more_vcpus_than_the_machine_takes_are_refused(vcpu: str) -> None:
    with pytest.raises(WrongState, match="256 vCPUs are wanted"):
        pinned(domain(inside=vcpu))


def test_pinning_again_changes_nothing() -> None:
    assert pin(pinned(FULL), FACTS) == pinned(FULL)


def test_on_the_older_board_devices_sit_in_libvirts_order_from_the_first_free_slot() -> None:
    assert places(DISK.format("vda", "") + CARD) == {
        "usb": "pci.0 0x1.0x2",
        "net0": "pci.0 0x2",
        "virtio-disk0": "pci.0 0x3",
        "balloon0": "pci.0 0x4",
    }


def test_a_given_address_is_kept_and_not_given_again() -> None:
    found = places(DISK.format("vda", AT_2) + CARD + NOTHING)

    assert found == {"virtio-disk0": "pci.0 0x2", "net0": "pci.0 0x3"}


def test_with_pci_express_each_device_has_a_port_and_one_stays_free() -> None:
    assert places(CARD + NO_USB, "q35") == {
        "pci.1": "pcie.0 0x1",
        "pci.2": "pcie.0 0x1.0x1",
        "pci.3": "pcie.0 0x1.0x2",
        "net0": "pci.1 0x0",
        "balloon0": "pci.2 0x0",
    }


@pytest.mark.parametrize(("machine", "slot"), [("pc", 0), ("pc", 1), ("q35", 0), ("q35", 31)])
def test_slots_of_the_board_itself_are_refused(machine: str, slot: int) -> None:
    address = f"<address type='pci' bus='0' slot='{slot}'/>"

    with pytest.raises(InvalidRequest, match="is taken already"):
        parse(domain(devices=DISK.format("vda", address), machine=machine))


def test_more_devices_than_slots_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="add a controller of model pci-bridge"):
        parse(domain(devices=CARD * 31, machine="pc"))


def test_a_feature_that_is_switched_off_and_unknown_to_qemu_is_left_out_and_a_wanted_one_kept() -> None:
    cpu = "<cpu mode='custom'><model>qemu64</model><feature policy='{}' name='no-such'/></cpu>"

    assert "no-such" not in pinned(domain(inside=cpu.format("disable"))).cpu.properties
    assert pinned(domain(inside=cpu.format("require"))).cpu.properties["no-such"] is True


def test_a_bochs_card_has_its_memory_in_bytes() -> None:
    xml = "<video><model type='bochs' vram='16384'/></video>"
    [card] = [one for one in parse(domain(devices=xml)).find("device") if one.get("driver") == "bochs-display"]

    assert card.properties["vgamem"] == 16 * 1024 * 1024
