"""Command lines of running QEMUs become definitions; what QEMU says counts more than what was given."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from agent.qemu.identity import ProcessIdentity
from agent.vm.adoption.facts import Block, Device, Facts, Node
from agent.vm.adoption.found import Found
from agent.vm.adoption.plan import AdoptionPlan, plan_adoption
from agent.vm.definition import Accelerator, CpuMode, Definition, Tap
from common.errors import InvalidRequest, WrongState

FACTS = Facts(
    machine="pc-q35-7.2",
    name=None,
    uuid=None,
    accelerator=Accelerator.TCG,
    cpu_model="qemu64",
    memory_kib=131072,
    memory_slots=None,
    current_memory_kib=131072,
    smp={"cpus": 2, "sockets": 1, "cores": 2, "threads": 1, "dies": 1, "maxcpus": 2},
    devices=(),
    built_in=frozenset(),
    objects={"pc.ram": {"qom-type": "memory-backend-ram"}},
    blocks=(),
    nodes={},
    network="",
)


def found(line: str, *, is_daemon: bool = False, uid: int = 0) -> Found:
    """Make the process of a command line."""
    return Found(
        identity=ProcessIdentity(7, 1),
        argv=("qemu", *shlex.split(line)),
        binary="/usr/bin/qemu-system-x86_64",
        directory="/vm",
        files={3: "/elsewhere/deep/disk.img"},
        uid=uid,
        is_apart=False,
        is_daemon=is_daemon,
    )


def plan(line: str, name: str = "web", **facts: object) -> AdoptionPlan:
    """Plan the adoption of a QEMU that was started without default devices."""
    return plan_adoption(found(f"-nodefaults {line}"), replace(FACTS, **facts), name)  # type: ignore[arg-type]


def words(made: AdoptionPlan) -> str:
    """Give the options of the definition as they are written."""
    return " ".join(word for option in made.definition.options for word in option.write())


def device(identifier: str, driver: str, *, bus: str = "pcie.0", plugged: bool = False, **properties: object) -> Device:
    """Make a device as QEMU tells it."""
    place = f"peripheral/{identifier}" if identifier else "peripheral-anon/device[0]"
    named = {key.replace("_", "-"): value for key, value in properties.items()}
    return Device(f"/machine/{place}", identifier, driver, bus, "/machine/q35", plugged, named)


def test_what_concerns_the_process_alone_is_dropped_and_told():
    made = plan("-qmp unix:q -monitor stdio -D log -d int -S -incoming defer -pidfile p -sandbox on -name x -enable-kvm -runas u")

    assert words(made) == "-nodefaults -display none"
    assert len(made.dropped) == 11
    assert made.definition.blockers == ()


@pytest.mark.parametrize(
    ("given", "model", "properties"),
    [
        ("", "qemu64", {}),
        ("-cpu Haswell,+avx,-svm,enforce,svm=on", "Haswell", {"enforce": "on", "avx": "on", "svm": "off"}),
        ("-cpu qemu64,hv_time,l3-cache=off", "qemu64", {"hv-time": "on", "l3-cache": "off"}),
    ],
)
def test_cpus_are_read_in_every_form(given, model, properties):
    cpu = plan(given).definition.cpu

    assert (cpu.model, cpu.properties) == (model, properties)


def test_the_host_cpu_has_no_model():
    assert plan("-cpu host,pmu=off").definition.cpu.mode is CpuMode.HOST_PASSTHROUGH


def test_machine_properties_stay_and_the_accelerator_goes():
    made = plan("-M q35,accel=kvm:tcg,usb=off -machine hpet=off,memory.size=1G -no-acpi -nographic")

    assert made.definition.machine == "pc-q35-7.2"
    assert made.definition.machine_properties == {"usb": "off", "hpet": "off", "acpi": "off", "graphics": "off"}


def test_topology_and_memory_are_what_runs():
    made = plan("-smp 2 -m 1G,slots=2,maxmem=4G", memory_slots=(2, 4194304)).definition

    assert (made.vcpu_count, made.smp) == (2, {"sockets": 1, "cores": 2, "threads": 1, "maxcpus": 2})
    assert (made.memory_kib, made.memory_slots.count if made.memory_slots else 0) == (131072, 2)


def test_a_guest_without_a_uuid_gets_none_elsewhere():
    made = plan("")

    assert "-uuid" not in words(made)
    assert made.definition.uuid != plan("").definition.uuid


@pytest.mark.parametrize(("given", "known", "wanted"), [("", None, "qemu-7"), ("", "old", "old"), ("new", "old", "new")])
def test_the_name_is_the_wish_else_qemus_own_else_made(given, known, wanted):
    assert plan_adoption(found("-nodefaults"), replace(FACTS, name=known), given).definition.name == wanted


def test_devices_get_the_address_that_they_have():
    devices = (
        device("a", "virtio-rng-pci", addr=40),
        device("", "virtio-scsi-pci", addr=0x19),
        device("d", "scsi-hd", bus="s.0", lun=3, scsi_id=2),
    )

    made = plan("-device virtio-rng,id=a -device virtio-scsi-pci -device scsi-hd,id=d,lun=3", devices=devices)

    assert "-device virtio-rng,id=a,bus=pcie.0,addr=05.0" in words(made)
    assert "-device virtio-scsi-pci,bus=pcie.0,addr=03.1" in words(made)
    assert "-device scsi-hd,id=d,lun=3,bus=s.0,scsi-id=2" in words(made)


def test_plugged_devices_come_after_what_they_sit_on_and_unplugged_ones_are_gone():
    inner = replace(device("inner", "virtio-net-pci", bus="rp", plugged=True, addr=0, netdev="n"), owner="/machine/peripheral/rp")
    devices = (inner, device("rp", "pcie-root-port", plugged=True, addr=8, chassis=3))

    made = plan("-device virtio-rng-pci,id=gone", devices=devices, network="n: index=0,type=user,net=10.0.2.0\r\n")

    assert [option.get("id") for option in made.definition.find("device")] == ["rp", "inner"]
    assert '-netdev {"type":"user","id":"n"}' in words(made)
    assert any("gone" in line for line in made.dropped)


@pytest.mark.parametrize("driver", ["vfio-pci", "usb-host", "ivshmem-plain"])
def test_devices_of_the_host_are_adopted_and_keep_the_vm_here(driver):
    made = plan(f"-device {driver},id=x", devices=(device("x", driver, addr=8),))

    assert "device of this host" in made.definition.blockers[0]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("-serial stdio", "socket,id=charserial0,path={run}/charserial0.sock,server=on,wait=off"),
        ("-serial mon:stdio", "socket,id=charserial0,path={run}/charserial0.sock,server=on,wait=off"),
        ("-serial file:a=b", "file,id=charserial0,path=/vm/a=b,append=on"),
        ("-serial unix:s,server,nowait", "socket,id=charserial0,path=/vm/s,server=on,wait=off"),
        ("-chardev stdio,id=c,mux=on", "socket,id=c,path={run}/c.sock,server=on,wait=off"),
        ("-chardev 'file,id=c,path=a,,b'", "file,id=c,path=/vm/a,,b,append=on"),
    ],
)
def test_lines_work_on_another_host(given, wanted):
    assert f"-chardev {wanted}" in words(plan(given))


def test_a_chardev_of_monitors_alone_is_dropped():
    assert "chardev" not in words(plan("-chardev socket,id=m,path=/x,server=on -mon chardev=m,mode=control"))


def test_drives_are_matched_by_name_else_by_order():
    blocks = (
        Block("ide0-hd0", "disk.img", "qcow2", is_read_only=False),
        Block("named", "new.iso", "raw", is_read_only=True),
        Block("ide2-cd0", None, "", is_read_only=False),
    )

    made = words(plan("-hda disk.img -drive if=none,id=named,file=old.iso,readonly -cdrom out.iso", blocks=blocks))

    assert "-drive index=0,media=disk,file=/elsewhere/deep/disk.img,format=qcow2" in made
    assert "-drive if=none,id=named,file=/vm/new.iso,readonly=on,format=raw" in made
    assert "-drive index=2,media=cdrom -" in made


def test_a_virtio_drive_becomes_a_drive_and_its_device():
    blocks = (Block("virtio0", "/d.img", "raw", is_read_only=False),)

    made = plan(
        "-drive if=virtio,file=/d.img,format=raw,cache=none",
        blocks=blocks,
        devices=(device("", "virtio-blk-pci", addr=32, drive="virtio0"),),
    )

    assert "-drive if=none,id=virtio0,file=/d.img,format=raw,cache=none" in words(made)
    assert "-device virtio-blk-pci,drive=virtio0,bus=pcie.0,addr=04.0" in words(made)


def test_nodes_that_came_later_are_described_with_what_they_stand_on():
    nodes = {
        "top": Node("top", "qcow2", "new.qcow2", False, {"direct": True}, "unmap", {"file": "#b1", "backing": "base"}),
        "#b1": Node("#b1", "file", "new.qcow2", False, {}, "off", {}),
        "base": Node("base", "file", "/base", True, {}, "off", {}),
    }
    disk = device("d", "virtio-blk-pci", addr=8, drive="top")

    made = plan(
        "-blockdev driver=file,node-name=base,filename=/base,read-only=on -device virtio-blk-pci,id=d,drive=base",
        nodes=nodes,
        devices=(disk,),
    )

    assert '"node-name":"top","driver":"qcow2"' in words(made)
    assert '"backing":"base"' in words(made)
    assert "drive=top" in words(made)
    assert [(one.target, one.node) for one in made.definition.disks] == [("d", "top")]


def test_a_tap_is_opened_by_the_agents():
    made = plan(
        "-netdev tap,id=n,ifname=tap-x,script=/up,downscript=no,vhost=on,queues=2",
        network="n: index=0,type=tap,ifname=tap-x,script=/up\r\n",
    )

    assert made.definition.taps == (Tap("n", "tap-x", None, 2, has_vhost=True),)
    assert '-netdev {"type":"tap","id":"n"}' in words(made)


def test_default_devices_are_named():
    facts = replace(
        FACTS,
        built_in=frozenset({"isa-serial", "isa-parallel", "VGA", "e1000e"}),
        network="hub 0\r\n \\ hub0port1: #net1: index=0,type=user,net=10.0.2.0\r\n",
        blocks=(Block("ide2-cd0", None, "", is_read_only=False), Block("floppy0", None, "", is_read_only=False)),
    )

    made = words(plan_adoption(found("-nographic"), facts, "web"))

    assert made.startswith("-nodefaults ")
    assert "-serial chardev:charserial0 -parallel null -vga std -net nic -net user" in made
    assert made.endswith("-drive if=ide,index=2,media=cdrom -drive if=floppy,index=0 -display none")


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("-snapshot", "-snapshot"),
        ("-icount 3", "-icount 3"),
        ("-spice port=1,password=a", "-spice: password"),
        ("-spice tls-port=1,x509-dir=/certificates", "-spice: tls-port, x509-dir"),
        ("-net tap", "-netdev"),
        ("-serial /dev/ttyS0", "/dev/ttyS0"),
        ("-fsdev local,id=f,path=/x,security_model=none", "-fsdev f"),
        ("-acpitable file=x", "-acpitable"),
    ],
)
def test_what_cannot_be_carried_keeps_the_vm_here_and_names_the_option(line, word):
    assert word in plan(line).definition.blockers[0]


def test_a_display_of_type_spice_goes_along():
    made = plan_adoption(found("-nodefaults -spice unix,addr=s.sock,disable-ticketing"), FACTS, "web")

    assert not made.definition.blockers
    assert "-spice unix=on,addr=/vm/s.sock,disable-ticketing=on" in words(made)


def test_a_daemons_relative_images_keep_the_vm_here():
    facts = replace(FACTS, blocks=(Block("ide0-hd0", "disk.img", "raw", is_read_only=False),))

    made = plan_adoption(found("-nodefaults -hda disk.img -daemonize", is_daemon=True), facts, "web")

    assert "start it with the absolute path" in made.definition.blockers[0]


def test_a_drive_that_is_no_file_keeps_the_vm_here():
    facts = replace(FACTS, blocks=(Block("d", 'json:{"driver": "vvfat"}', "raw", is_read_only=False),))

    made = plan_adoption(found("-nodefaults -drive if=none,id=d,file=fat:rw:/srv"), facts, "web")

    assert made.definition.blockers == ("-drive d: what stands behind it is no file that another QEMU could open",)


def test_a_board_of_another_kind_keeps_the_vm_here():
    made = plan_adoption(found("-nodefaults"), replace(FACTS, machine="microvm"), "web")

    assert made.definition.blockers == ("machine type microvm: only boards of type pc and q35 are built again",)


def test_a_config_file_is_refused():
    with pytest.raises(WrongState, match=r"-readconfig x\.cfg"):
        plan("-readconfig x.cfg")


def test_control_characters_are_refused():
    with pytest.raises(InvalidRequest, match="control characters"):
        plan_adoption(replace(found(""), argv=("qemu", "-append", "a\nb")), FACTS, "web")


def test_the_definition_travels():
    made = plan("-device virtio-rng-pci,id=a -cpu qemu64,+avx", devices=(device("a", "virtio-rng-pci", addr=40),)).definition

    assert Definition.from_record(made.to_record()) == made


def test_monitors_that_are_objects_as_in_qemu_11_1_are_left_behind_with_their_lines():
    objects = {**FACTS.objects, "compat_monitor0": {"qom-type": "monitor-qmp"}, "mine": {"qom-type": "monitor-hmp"}}
    line = "-chardev socket,id=m,path=/m,server=on -object monitor-hmp,id=mine,chardev=m -chardev null,id=c -serial chardev:c"

    made = plan(line, objects=objects)

    assert made.definition.blockers == ()
    assert "monitor" not in words(made)
    assert "/m" not in words(made)
    assert "id=c" in words(made)
