"""Domain XML of the user's own for the destination: what may differ, and what may not."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from agent.migration.adaptation import adapt, elsewhere
from agent.migration.order import DiskMarker
from agent.vm.definition import Accelerator, Definition
from agent.vm.domain.parse import parse_domain
from agent.vm.host_files import written_images
from common.errors import InvalidRequest, WrongState

UUID_ = UUID("6a5a3a4e-0c0e-4c76-8f5b-0d3a3c4d5e6f")
XML = f"""
<domain type='kvm'>
  <name>web</name>
  <uuid>{UUID_}</uuid>
  <memory unit='MiB'>64</memory>
  <memoryBacking><hugepages/></memoryBacking>
  <vcpu>2</vcpu>
  <iothreads>1</iothreads>
  <cputune><shares>512</shares></cputune>
  <os><type machine='q35'>hvm</type><kernel>/vm/kernel</kernel><cmdline>quiet</cmdline></os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' iothread='1'/>
      <source file='/vm/web.qcow2'/>
      <target dev='vda' bus='virtio'/>
      <serial>one</serial>
    </disk>
    <interface type='bridge'>
      <mac address='52:54:00:00:00:01'/><source bridge='br0'/><model type='virtio'/>
    </interface>
    <serial type='file'><source path='/vm/serial.log'/></serial>
    <channel type='unix'><source mode='bind' path='/vm/agent.sock'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <graphics type='vnc' port='5901' autoport='no' listen='127.0.0.1'/>
    <video><model type='virtio'/></video>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
</domain>"""

HOST_SIDE = [
    ("br0", "br7"),
    ("type='bridge'", "type='ethernet'", "<source bridge='br0'/>", "<target dev='tap5'/>"),
    ("/vm/serial.log", "/srv/serial.log"),
    ("<serial type='file'>", "<serial type='pty'>", "<source path='/vm/serial.log'/>", ""),
    ("/vm/agent.sock", "/srv/agent.sock"),
    ("port='5901'", "port='5999'", "127.0.0.1", "0.0.0.0"),
    ("/dev/urandom", "/dev/random"),
    ("cache='none'", "cache='writeback'"),
    (" iothread='1'", ""),
    ("<shares>512", "<shares>2048"),
    ("/usr/bin/qemu", "/opt/qemu/bin/qemu"),
    ("/vm/kernel", "/boot/kernel"),
    ("/vm/web.qcow2", "/srv/images/web.qcow2"),
    ("<memoryBacking><hugepages/></memoryBacking>", ""),
    (f"<uuid>{UUID_}</uuid>", ""),
    ("<name>web</name>", "<name>shop</name>"),
]

GUEST_SIDE = [
    ("00:00:01'/>", "00:00:02'/>", "mac"),
    ("<model type='virtio'/>\n", "<model type='e1000e'/>\n", "virtio-net-pci"),
    ("machine='q35'", "machine='pc-q35-6.2'", "machine: pc-q35-7.2 in the guest, pc-q35-6.2 in the XML"),
    ("machine='q35'", "machine='pc'", "machine"),
    (">64<", ">128<", "memory (KiB): 65536 in the guest, 131072 in the XML"),
    ("<vcpu>2", "<vcpu>4", "vCPUs: 2 in the guest, 4 in the XML"),
    ("<acpi/>", "<pae/>", "acpi"),
    ("<serial>one", "<serial>two", "serial"),
    ("bus='virtio'", "bus='scsi'", "device virtio-disk0: not in the XML"),
    ("type='qcow2'", "type='raw'", "disk vda (format): qcow2 in the guest, raw in the XML"),
    ("<target dev='vda'", "<readonly/><target dev='vda'", "disk vda (read-only): False in the guest, True in the XML"),
    ("/vm/web.qcow2", "/vm/other.qcow2", "disk vda (file name): web.qcow2 in the guest, other.qcow2 in the XML"),
    ("guest_agent.0", "guest_agent.1", "org.qemu.guest_agent.0 in the guest"),
    ("<video><model type='virtio'/></video>", "<video><model type='vga'/></video>", "VGA"),
    ("quiet", "quiet single", "append"),
    ("<source bridge='br0'/>", "", "netdev hostnet0 (type): tap in the guest, user in the XML"),
    (str(UUID_), "6a5a3a4e-0c0e-4c76-8f5b-0d3a3c4d5e60", "UUID"),
    ("<name>web</name>", "<name>mail</name>", "name: web in the guest, mail in the XML; --name renames"),
    ("<rng", "<watchdog model='i6300esb'/><rng", "device watchdog0: not in the guest"),
]
# What else has to change so that the XML is carried.
_FIT = {"": (b"type='bridge'", b"type='user'"), "bus='scsi'": (b" iothread='1'", b"")}


def _running() -> Definition:
    started = parse_domain(XML.encode(), "web.xml")
    return replace(started, machine="pc-q35-7.2", accelerator=Accelerator.TCG)


def _changed(*words: str) -> bytes:
    xml = XML
    for before, after in zip(words[::2], words[1::2], strict=True):
        assert before in xml
        xml = xml.replace(before, after)
    return xml.encode()


@pytest.mark.parametrize("words", HOST_SIDE, ids=lambda words: words[1][:30])
def test_what_stands_behind_the_guest_may_differ(words: tuple[str, ...]):
    wanted = adapt(_running(), _changed(*words), name="shop")

    assert (wanted.machine, wanted.accelerator, wanted.uuid) == ("pc-q35-7.2", Accelerator.TCG, UUID_)


@pytest.mark.parametrize(("before", "after", "word"), GUEST_SIDE, ids=lambda word: word[:30])
def test_what_the_guest_can_tell_may_not(before: str, after: str, word: str):
    with pytest.raises(InvalidRequest) as refused:
        adapt(_running(), _changed(before, after).replace(*_FIT.get(after, (b"", b""))), name="shop")

    assert refused.value.reason == "GUEST_ABI_DIFFERS"
    assert word in refused.value.text


def test_what_cannot_migrate_is_refused():
    running = _running()
    device = "<hostdev mode='subsystem' type='pci'><source><address bus='6' slot='2'/></source></hostdev><rng"

    with pytest.raises((InvalidRequest, WrongState)):
        adapt(running, _changed("<rng", device), name="")


def test_images_are_looked_for_where_the_destination_has_them():
    running = _running()
    wanted = adapt(running, _changed("/vm/web.qcow2", "/srv/web.qcow2"), name="")
    [image] = written_images(running)

    [marker] = elsewhere((DiskMarker("vda", image.path, "/vm/.ferry-1", "nonce"),), running, wanted)

    assert (marker.image_path, marker.marker_path) == ("/srv/web.qcow2", "/vm/.ferry-1")
