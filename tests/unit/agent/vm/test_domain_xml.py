"""Domain XML becomes a definition, or an error that says where."""

from __future__ import annotations

import re
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.vm.definition import DEFAULT_CPU, Cpu, CpuMode, Definition, Disk, Tap
from agent.vm.domain.parse import parse_domain
from agent.vm.domain.reader import MAX_XML_BYTES, NotCarried
from common.errors import InvalidRequest
from tests.unit.agent.vm.samples import FULL, NOTHING, SAMPLE_UUID, domain, parse


def named(definition: Definition, option: str = "device") -> dict[str, dict[str, object]]:
    """Give the properties of one kind of option by id or node name."""
    return {found.get("id") or found.get("node-name"): found.properties for found in definition.find(option)}


def test_everything_carried_is_read() -> None:
    definition = parse(FULL)

    assert (definition.name, definition.uuid) == ("web", SAMPLE_UUID)
    assert (definition.memory_kib, definition.current_memory_kib) == (512 * 1024, 256 * 1024)
    assert (definition.vcpu_count, definition.smp) == (4, {"sockets": 2, "dies": 1, "cores": 2, "threads": 1})
    assert definition.cpu == Cpu(CpuMode.CUSTOM, "Nehalem", {"lahf-lm": True, "pclmulqdq": False, "enforce": True, "pmu": False})
    assert (definition.machine, definition.prefers_kvm, definition.accelerator) == ("q35", True, None)
    assert definition.emulator == "/usr/bin/qemu-system-x86_64"
    assert definition.machine_properties == {
        "usb": False, "dump-guest-core": False, "hpet": False, "smm": False, "vmport": False,
    }  # fmt: skip
    assert definition.has_acpi


def test_every_carried_device_is_read() -> None:
    definition = parse(FULL)

    devices, nodes = named(definition), named(definition, "blockdev")
    assert definition.disks == (Disk("vda", "vda", "virtio-disk0", False), Disk("vdb", "vdb", "virtio-disk1", False))
    assert nodes["vda-file"]["filename"] == "/srv/web,1.qcow2"
    assert (nodes["vda"]["driver"], nodes["vda"]["discard"]) == ("qcow2", "unmap")
    assert nodes["vdb"]["read-only"] is True
    assert (devices["virtio-disk0"]["bootindex"], devices["net0"]["bootindex"]) == (2, 1)
    assert definition.taps == (Tap("hostnet1", "tap0", None, 1, False), Tap("hostnet2", None, "br0", 1, False))
    assert devices["net0"]["mac"] == "52:54:00:aa:bb:cc"
    assert devices["console1"]["driver"] == "virtconsole"
    assert named(definition, "object")["objrng0"]["filename"] == "/dev/urandom"
    assert devices["balloon0"]["deflate-on-oom"] is True
    assert [option.text for option in definition.find("append")] == ["console=ttyS0 a,b=c"]


def test_what_is_left_out_is_what_libvirt_gives() -> None:
    definition = parse("<domain type='qemu'><name>a</name><memory>16384</memory><os><type>hvm</type></os></domain>")

    assert definition.machine == "pc"
    assert definition.cpu == DEFAULT_CPU
    assert definition.vcpu_count == 1
    assert not definition.has_acpi
    assert definition.current_memory_kib == definition.memory_kib


def test_a_missing_uuid_and_missing_macs_are_made_up_and_differ() -> None:
    card = "<interface type='user'><model type='virtio'/></interface>"
    xml = domain(devices=card * 2).replace(f"<uuid>{SAMPLE_UUID}</uuid>", "").encode()

    first, second = parse_domain(xml, "a"), parse_domain(xml, "a")

    macs = [str(device.get("mac")) for definition in (first, second) for device in definition.find("device") if device.get("mac")]
    assert first.uuid != second.uuid
    assert len(set(macs)) == len(macs) == 4
    assert all(mac.startswith("52:54:00:") for mac in macs)


@pytest.mark.parametrize(
    ("memory", "kib"),
    [
        ("<memory>524296</memory>", 524296),
        ("<memory unit='KiB'>524296</memory>", 524296),
        ("<memory unit='b'>16777217</memory>", 16385),
        ("<memory unit='MiB'>512</memory>", 524288),
        ("<memory unit='M'>512</memory>", 524288),
        ("<memory unit='MB'>512</memory>", 500000),
        ("<memory unit='G'>2</memory>", 2 * 1024 * 1024),
        ("<memory unit='TiB'>1</memory>", 1 << 30),
    ],
)
def test_memory_is_read_in_its_unit_and_rounded_up_to_kib(memory: str, kib: int) -> None:
    assert parse(domain(memory=memory)).memory_kib == kib


def test_the_first_disk_boots_unless_devices_say_otherwise() -> None:
    disk = "<disk type='file'>{boot}<source file='/{name}'/><target dev='{name}'/></disk>"
    plain = disk.format(boot="", name="vda") + disk.format(boot="", name="vdb")
    ordered = disk.format(boot="", name="vda") + disk.format(boot="<boot order='7'/>", name="vdb")

    def orders(devices: str) -> list[object]:
        found = named(parse(domain(devices=devices)))
        return [found[f"virtio-disk{index}"].get("bootindex") for index in range(2)]

    assert orders(plain) == [1, None]
    assert orders(ordered) == [None, 7]


def test_a_console_alone_makes_a_serial_line() -> None:
    definition = parse(domain(devices="<console type='pty'/>"))

    assert named(definition)["serial0"]["driver"] == "isa-serial"
    assert named(definition, "chardev")["charserial0"]["backend"] == "pty"


def test_an_element_that_is_not_carried_is_named_with_path_and_line() -> None:
    xml = domain(devices="\n<disk type='file'><source file='/a'/><target dev='vda'/>\n<transient/></disk>")

    with pytest.raises(NotCarried) as raised:
        parse(xml)

    assert raised.value.text == "web.xml:3: /domain/devices/disk/transient is not carried"
    assert raised.value.reason == "ELEMENT_NOT_CARRIED"
    assert raised.value.facts == {"path": "/domain/devices/disk/transient", "line": "3"}


def _without_ignored(xml: str) -> str:
    for name in ("title", "description", "metadata"):
        xml = re.sub(rf"<{name}>.*</{name}>", "", xml)
    return xml


_TAGS = sorted(set(re.findall(r"<([a-zA-Z_-]+)", _without_ignored(FULL))) - {"alias", "title", "description"})


@pytest.mark.parametrize("tag", _TAGS)
def test_an_unknown_attribute_or_child_is_refused_on_every_element(tag: str) -> None:
    opening = re.compile(rf"<{tag}(?=[\s/>])([^>]*?)(/?)>")
    xml = _without_ignored(FULL)
    with_attribute = opening.sub(rf"<{tag}\1 bogus='1'\2>", xml, count=1)
    whole = re.compile(rf"<{tag}(?=[\s/>])([^>]*?)(?:/>|>(.*?)</{tag}>)", re.DOTALL)
    with_child = whole.sub(rf"<{tag}\1>\2<bogus/></{tag}>", xml, count=1)

    for changed in (with_attribute, with_child):
        with pytest.raises(NotCarried, match="bogus"):
            parse(changed)


@pytest.mark.parametrize(
    "inside",
    [
        "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'/>",
        "<memoryBacking><source type='shm'/></memoryBacking>",
        "<cputune><period>1000</period></cputune>",
        "<cpu mode='custom'><model vendor_id='x'>qemu64</model></cpu>",
        "<cpu match='minimum'><model>qemu64</model></cpu>",
        "<clock offset='variable' adjustment='5'/>",
        "<clock offset='timezone' timezone='Europe/Paris'/>",
        "<on_crash>coredump-destroy</on_crash>",
        "<launchSecurity type='sev'/>",
        "<features><xen/></features>",
        "<blkiotune><weight>800</weight></blkiotune>",
    ],
)
def test_what_is_not_carried_is_refused_by_name(inside: str) -> None:
    with pytest.raises(NotCarried, match=r"web\.xml:1: /domain/.* is not carried"):
        parse(domain(inside=inside))


@pytest.mark.parametrize(
    "device",
    [
        "<disk type='volume'><source pool='p' volume='v'/><target dev='vda'/></disk>",
        "<disk type='file' device='lun'><source file='/a'/><target dev='sda'/></disk>",
        "<disk type='file'><source file='/a'/><target dev='vda' bus='sd'/></disk>",
        "<disk type='file'><driver type='dmg'/><source file='/a'/><target dev='vda'/></disk>",
        "<disk type='file'><source file='/a'/><target dev='vda'/><encryption format='qcow'/></disk>",
        "<disk type='network'><source protocol='vxhs' name='p/i'/><target dev='vda'/></disk>",
        "<interface type='network'><source network='inner'/><model type='virtio'/></interface>",
        "<interface type='direct'><source dev='eth0'/><model type='virtio'/></interface>",
        "<interface type='user'><model type='virtio'/><bandwidth/></interface>",
        "<interface type='user'><model type='what'/></interface>",
        "<serial type='spicevmc'/>",
        "<console type='pty'/><console type='pty'/>",
        "<rng model='virtio'><backend model='egd' type='udp'/></rng>",
        "<controller type='xenbus' index='0'/>",
        "<controller type='pci' index='1' model='pcie-expander-bus'/>",
        "<graphics type='rdp'/>",
        "<graphics type='spice' passwd='p'/>",
        "<graphics type='spice' passwd='secret'/>",
        "<tpm model='tpm-spapr'><backend type='emulator'/></tpm>",
        "<hostdev mode='capabilities' type='storage'><source/></hostdev>",
        "<filesystem type='mount'><driver type='virtiofs'/><source dir='/a'/><target dir='t'/></filesystem>",
        "<smartcard mode='host'/>",
        "<shmem name='s'/>",
    ],
)
def test_devices_that_are_not_carried_are_refused_by_name(device: str) -> None:
    with pytest.raises(NotCarried, match=r"web\.xml:1: /domain/devices/.* is not carried"):
        parse(domain(devices=device))


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        (domain(name=""), "1 to 200 characters"),
        (domain(name="a/b"), "name"),
        (domain(name="a\tb"), "printable"),
        (domain(memory="<memory>12x</memory>"), "not a whole number"),
        (domain(memory="<memory>-5</memory>"), "not a whole number"),
        (domain(memory="<memory>0</memory>"), "memory in KiB 0"),
        (domain(memory=f"<memory unit='TiB'>{10**9}</memory>"), "memory in KiB"),
        (domain(memory=""), "element memory is missing"),
        (domain(memory="<memory>16384</memory><memory>16384</memory>"), "given twice"),
        (domain(inside="<vcpu>0</vcpu>"), "0 of 0 CPUs"),
        (domain(inside="stray"), "stray text 'stray'"),
        (domain(inside="<cpu><model>a,enforce</model></cpu>"), "CPU model"),
        (domain(inside="<cpu><topology sockets='3' cores='1' threads='1'/></cpu>"), "topology has 3 CPUs"),
        (domain(inside="<cpu mode='host-passthrough'/>"), "needs a domain of type kvm"),
        (domain(devices="<disk type='file'><source file='a'/><target dev='vda'/></disk>"), "absolute path"),
        (domain(devices="<disk type='file'><source file='/a/../b'/><target dev='vda'/></disk>"), r"`\.\.`"),
        (domain(devices="<disk type='file'><source file='/a'/><target dev='xda'/></disk>"), "disk target"),
        (domain(devices="<disk type='file'><source file='/a'/><target dev='hda'/></disk>"), "has no IDE"),
        (domain(devices="<disk type='file'><target dev='vda'/></disk>"), "needs a source"),
        (
            domain(devices="<disk type='file'><driver iothread='1'/><source file='/a'/><target dev='vda'/></disk>"),
            "iothread 1 is not",
        ),
        (domain(devices="<disk type='file'><source file='/a'/><target dev='vda'/></disk>" * 2), "vda is given twice"),
        (
            domain(devices="<disk type='file'><driver io='native'/><source file='/a'/><target dev='vda'/></disk>"),
            "needs cache",
        ),
        (
            domain(devices="<interface type='user'><mac address='53:54:00:1:2:3'/><model type='virtio'/></interface>"),
            "MAC address",
        ),
        (
            domain(devices="<interface type='user'><mac address='53:54:00:01:02:03'/><model type='virtio'/></interface>"),
            "multicast",
        ),
        (domain(devices="<rng model='virtio'><backend model='random'>/etc/shadow</backend></rng>"), "no source of random bytes"),
        (domain(devices="<serial type='pty'/><console type='null'/>"), "differs from the first serial line"),
        (domain(devices="<serial type='pty'/>" * 5), "serial port 4"),
        (
            domain(memory="<memory>16384</memory><currentMemory>16384</currentMemory>", inside="<os/>"),
            "given twice",
        ),
    ],
)
def test_values_that_cannot_be_are_refused_with_their_line(xml: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as raised:
        parse(xml)

    assert raised.value.text.startswith("web.xml:1: /domain")


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        (b"", "XML_BROKEN"),
        (b"<domain", "XML_BROKEN"),
        (b"\xff\xfe\x00", "XML_BROKEN"),
        (b"<domain>\xff</domain>", "XML_BROKEN"),
        (b"<domain>&unknown;</domain>", "XML_BROKEN"),
        (b"<domain>\x00</domain>", "XML_BROKEN"),
        (b"<a>" * 5000, "XML_BROKEN"),
        (b"<domain>" + b" " * MAX_XML_BYTES + b"</domain>", "XML_TOO_BIG"),
        (b"<!DOCTYPE a [<!ENTITY b 'c'>]><domain>&b;</domain>", "XML_HAS_DOCTYPE"),
        (b"<!DOCTYPE a SYSTEM 'file:///etc/passwd'><domain/>", "XML_HAS_DOCTYPE"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><domain/>".encode("utf-16"), "XML_BROKEN"),
        (b"<?xml version='1.0' encoding='utf-7'?>+ADwAIQ-DOCTYPE a+AD4-<domain/>", "XML_BROKEN"),
        (b"<network/>", "ELEMENT_NOT_CARRIED"),
        (b"<domain/>", "VALUE_INVALID"),
        (b"<domain type='xen'/>", "ELEMENT_NOT_CARRIED"),
    ],
)
def test_broken_huge_and_hostile_xml_is_refused_with_a_reason(xml: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_domain(xml, "web.xml")

    assert raised.value.reason == reason
    assert raised.value.text.startswith("web.xml:")


def test_comments_and_declarations_do_no_harm() -> None:
    xml = "<?xml version='1.0' encoding='UTF-8'?><!-- a --><?pi x?>" + domain(inside="<!-- b -->")

    assert parse(xml).name == "web"


def test_the_name_may_hold_whatever_is_printable() -> None:
    assert parse(domain(name="a=1,b=2 -S ü")).name == "a=1,b=2 -S ü"


_PIECES = re.findall(r"<[^>]+>|[^<]+", FULL)


@given(st.lists(st.integers(0, len(_PIECES) - 1), max_size=6), st.binary(max_size=8), st.integers(0, len(FULL)))
def test_damaged_xml_is_refused_or_read_and_never_anything_else(drops: list[int], junk: bytes, at: int) -> None:
    damaged = "".join(piece for index, piece in enumerate(_PIECES) if index not in drops).encode()
    damaged = damaged[:at] + junk + damaged[at:]

    outcome = read_or_refuse(damaged)

    assert outcome.startswith("web.xml:") or outcome == "read"


def read_or_refuse(xml: bytes) -> str:
    """Say what became of a document; anything but a refusal in our words is raised."""
    try:
        parse_domain(xml, "web.xml", new_uuid=lambda: UUID(int=1))
    except InvalidRequest as error:
        return error.text
    return "read"


_IDE = "<disk device='cdrom'><target dev='hda' bus='ide'/><address type='drive' {}/></disk>"


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        (domain(machine="pc", devices=_IDE.format("target='1'")), "target 1: there is only 0"),
        (domain(devices=_IDE.replace("hda", "sda").replace("ide", "sata").format("bus='1'")), "bus 1: there is only 0"),
        (
            domain(devices="<channel type='pty'><target type='virtio'/><address type='virtio-serial' bus='1' port='1'/></channel>"),
            "bus 1: there is only 0",
        ),
        (
            domain(devices="<graphics type='vnc' listen='127.0.0.1'><listen type='address' address='::1'/></graphics>"),
            "'127.0.0.1' is given before",
        ),
        (domain(devices="<video><model type='vga' heads='2'/></video>"), "heads 2"),
        (
            domain(inside="<numatune><memnode cellid='3' mode='strict' nodeset='0'/></numatune>"),
            "cell 3: there is no such cell",
        ),
        (domain(inside="<iothreadids><iothread id='3'/><iothread id='3'/></iothreadids>"), "iothread 3 is given twice"),
        (domain(devices="<serial type='pty'><protocol type='telnet'/></serial>"), "'telnet' is not carried"),
        (domain(devices="<controller type='pci' model='pcie-root'><alias name='a' b='c'/></controller>"), "@b 'c' is not carried"),
        (
            domain(inside="<on_crash>restart</on_crash>", devices="<panic model='isa'/>"),
            "on_crash 'restart, with a panic device' is not carried",
        ),
    ],
)
def test_what_would_change_nothing_is_refused_and_not_dropped(xml: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(said)) as raised:
        parse(xml)

    assert "line" in raised.value.facts


def test_numbers_of_pci_controllers_may_have_gaps() -> None:
    devices = "<controller type='pci' index='3' model='pcie-root-port'/><disk><source file='/d'/><target dev='vda'/>"
    definition = parse(domain(devices=devices + "<address type='pci' bus='1' slot='0'/></disk>"))

    assert named(definition)["virtio-disk0"]["bus"] == "pci.1"
    assert named(definition)["pci.1"]["driver"] == "pcie-root-port"


def test_features_that_qemu_has_no_switch_for_change_nothing() -> None:
    cpu = "<cpu><model>Nehalem</model>{}</cpu>"

    plain, listed = (parse(domain(inside=cpu.format(one))) for one in ("", "<feature name='osxsave'/><feature name='cmt'/>"))

    assert plain == listed


def test_pages_are_merged_and_dumped_as_the_xml_says() -> None:
    asked = parse(domain(memory="<memory dumpCore='on'>16384</memory>", inside="<memoryBacking><nosharepages/></memoryBacking>"))
    plain = parse(domain())

    assert (asked.machine_properties["dump-guest-core"], asked.machine_properties["mem-merge"]) == (True, False)
    assert (plain.machine_properties["dump-guest-core"], plain.machine_properties.get("mem-merge")) == (False, None)


@pytest.mark.parametrize(
    ("timer", "words"),
    [
        ("<timer name='rtc' track='guest' tickpolicy='catchup'/>", "base=utc,clock=vm,driftfix=slew"),
        ("<timer name='rtc' track='wall' tickpolicy='delay'/>", "base=utc,clock=host"),
        ("<timer name='rtc' track='realtime'/>", "base=utc,clock=rt"),
    ],
)
def test_a_clock_follows_what_it_is_to_follow(timer: str, words: str) -> None:
    definition = parse(domain(inside=f"<clock offset='utc'>{timer}</clock>"))

    assert [option.write()[1] for option in definition.find("rtc")] == [words]


def test_a_port_has_the_number_of_its_place_and_none_takes_a_place_that_is_given() -> None:
    ports = "<controller type='pci' index='3' model='pcie-root-port'/><controller type='pci' index='1' model='pcie-root-port'/>"
    card = "<interface type='user'><model type='e1000'/><address type='pci' bus='0' slot='1'/></interface>"

    devices = named(parse(domain(devices=NOTHING + ports + card)))

    assert [(devices[name]["addr"], devices[name]["port"]) for name in ("pci.1", "pci.2", "pci.3")] == [
        ("0x2", 16), ("0x2.0x1", 17), ("0x2.0x2", 18),
    ]  # fmt: skip
    assert devices["net0"]["addr"] == "0x1"


def test_a_hub_stands_before_what_is_plugged_into_it() -> None:
    xml = "<input type='tablet' bus='usb'><address type='usb' bus='0' port='1.2'/></input><hub type='usb'/>"
    drivers = [device.get("driver") for device in parse(domain(devices=xml)).find("device")]

    assert drivers.index("usb-hub") < drivers.index("usb-tablet")


def test_a_channel_without_a_name_has_none() -> None:
    definition = parse(domain(devices="<channel type='pty'><target type='virtio'/></channel>"))

    assert "name" not in named(definition)["channel0"]


def test_firmware_whose_variables_libvirt_would_keep_needs_their_file() -> None:
    os = "<os><type machine='q35'>hvm</type><loader type='pflash' readonly='yes'{}>/code</loader></os>"
    xml = domain().replace("<os><type machine='q35'>hvm</type></os>", os)

    with pytest.raises(InvalidRequest, match="nvram is missing"):
        parse(xml.format(""))
    assert "pflash0" in named(parse(xml.format(" stateless='yes'")), "blockdev")


def test_usb_companions_without_a_number_belong_to_the_controller_before_them() -> None:
    companions = "".join(
        f"<controller type='usb' model='ich9-uhci{number}'><master startport='{port}'/></controller>"
        for number, port in ((1, 0), (2, 2), (3, 4))
    )
    definition = parse(domain(devices=f"<controller type='usb' model='ich9-ehci1'/>{companions}"))

    masters = [device.get("masterbus") for device in definition.find("device") if "uhci" in device.get("driver")]
    assert masters == ["usb.0"] * 3


def test_a_chain_that_ends_here_ends_here_whatever_the_image_names() -> None:
    disk = "<disk><driver type='qcow2'/><source file='/d'/><backingStore/><target dev='vda'/></disk>"
    definition = parse(domain(devices=disk))

    blockdev = next(option for option in definition.find("blockdev") if option.get("node-name") == "vda")

    assert blockdev.write()[1] == '{"driver":"qcow2","node-name":"vda","file":"vda-file","read-only":false,"backing":null}'
    assert Definition.from_record(definition.to_record()) == definition


def test_what_the_maker_says_of_the_machine_is_carried_where_the_guest_is_to_see_it() -> None:
    sysinfo = (
        "<sysinfo type='smbios'><bios><entry name='vendor'>A, B</entry></bios>"
        f"<system><entry name='serial'>7</entry><entry name='uuid'>{SAMPLE_UUID}</entry><entry name='product'>p</entry></system>"
        "<oemStrings><entry>one</entry><entry>two,three</entry></oemStrings></sysinfo>"
    )
    smbios = "<type machine='q35'>hvm</type><smbios mode='{}'/>"
    shown = domain(inside=sysinfo).replace("<type machine='q35'>hvm</type>", smbios.format("sysinfo"))
    hidden = domain(inside=sysinfo).replace("<type machine='q35'>hvm</type>", smbios.format("emulate"))

    assert [option.write()[1] for option in parse(shown).find("smbios")] == [
        "type=0,vendor=A,, B",
        f"type=1,product=p,serial=7,uuid={SAMPLE_UUID}",
        "type=11,value=one,value=two,,three",
    ]
    assert list(parse(hidden).find("smbios")) == []


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ("<sysinfo type='smbios'><system><entry name='colour'>c</entry></system></sysinfo>", "@name 'colour' is not carried"),
        ("<sysinfo type='smbios'><system><entry name='uuid'>1</entry></system></sysinfo>", "has to be the domain's"),
        ("<sysinfo type='smbios'><bios><entry name='date'>a\tb</entry></bios></sysinfo>", "control characters"),
        ("<sysinfo type='fwcfg'><entry name='etc/x'>1</entry></sysinfo>", "`opt/` has to come first"),
        ("<sysinfo type='fwcfg'><entry name='opt/x' file='../y'/></sysinfo>", "absolute path"),
        ("<sysinfo type='fwcfg'><entry name='opt/x'/></sysinfo>", "either a text or a file"),
    ],
)
def test_what_no_table_of_a_machine_holds_is_refused(inside: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(said)):
        parse(domain(inside=inside.replace("\\t", "&#9;")))


def test_firmware_that_libvirt_chose_is_carried_with_its_paths_alone() -> None:
    os = (
        "<os firmware='efi'><type machine='q35'>hvm</type><firmware><feature enabled='no' name='enrolled-keys'/></firmware>"
        "<loader readonly='yes' type='pflash' format='qcow2'>/code</loader><nvram template='/t' format='qcow2'>{}</nvram></os>"
    )
    xml = domain().replace("<os><type machine='q35'>hvm</type></os>", os)

    nodes = named(parse(xml.format("/vars")), "blockdev")
    with pytest.raises(NotCarried, match="@firmware 'efi, without"):
        parse(xml.format("/vars").replace("/code", ""))

    assert [nodes[name]["driver"] for name in ("pflash0", "pflash1")] == ["qcow2", "qcow2"]
    assert nodes["pflash1-file"]["filename"] == "/vars"


def test_a_network_of_libvirt_is_its_bridge() -> None:
    xml = "<interface type='network'><source network='inner' portid='1'{}/><model type='virtio'/></interface>"

    assert parse(domain(devices=xml.format(" bridge='virbr0'"))).taps == (Tap("hostnet0", None, "virbr0", 1, False),)
    with pytest.raises(NotCarried, match="network, without the bridge in its source"):
        parse(domain(devices=xml.format("")))


def test_a_card_has_the_program_and_the_number_that_it_is_given() -> None:
    card = "<interface type='user'><model type='virtio'/>{}</interface>"

    def properties(inside: str) -> dict[str, object]:
        return named(parse(domain(devices=card.format(inside))))["net0"]

    assert properties("<rom enabled='no'/>")["romfile"] == ""
    assert properties("<rom bar='off' file='/boot/pxe.rom'/>").items() >= {"rombar": 0, "romfile": "/boot/pxe.rom"}.items()
    assert properties("<acpi index='3'/>")["acpi-index"] == 3


def test_a_display_of_type_spice_is_where_and_as_it_is_asked_for() -> None:
    def spice(xml: str) -> dict[str, object]:
        return next(parse(domain(devices=xml)).find("spice")).properties

    def common(**words: object) -> dict[str, object]:
        return {**words, "disable-ticketing": True, "seamless-migration": True}

    assert spice("<graphics type='spice' autoport='yes' port='5907' listen='::1'/>") == common(port="{port}", addr="::1")
    assert spice("<graphics type='spice' port='5903' autoport='no'/>") == common(port=5903, addr="127.0.0.1")
    assert spice("<graphics type='spice'><listen type='none'/></graphics>") == common(port=0)
    assert spice("<graphics type='spice'><listen type='socket'/></graphics>") == common(unix=True, addr="{run}/spice.sock")
    assert spice("<graphics type='spice'><image compression='off'/><clipboard copypaste='no'/></graphics>") == {
        "port": 0, "disable-ticketing": True, "image-compression": "off", "disable-copy-paste": True, "seamless-migration": True,
    }  # fmt: skip


def test_what_ends_in_a_display_of_type_spice_needs_one() -> None:
    channel = "<channel type='spicevmc'><target type='virtio'/></channel>"

    definition = parse(domain(devices=channel + "<graphics type='spice'/>"))
    with pytest.raises(InvalidRequest, match="a display of type spice is missing"):
        parse(domain(devices=channel))

    assert named(definition, "chardev")["charchannel0"] == {"backend": "spicevmc", "id": "charchannel0", "name": "vdagent"}
    assert named(definition)["channel0"]["name"] == "com.redhat.spice.0"
    assert next(definition.find("audiodev")).get("driver") == "spice"
