"""A sample of each element of libvirt's domain XML that Ferry's table in docs/domain-xml.md speaks of.

Source of the names: https://libvirt.org/formatdomain.html.
"""

from __future__ import annotations

from dataclasses import dataclass

NO_DEVICES = "<controller type='usb' model='none'/><memballoon model='none'/>"
DISK = "<disk type='file' device='disk'>{inside}<source file='/d.img'/><target dev='vda' bus='virtio'/></disk>"
CARD = "<interface type='user'><model type='virtio'/>{inside}</interface>"
EFI = (
    "<os firmware='efi'><type machine='q35'>hvm</type><firmware><feature enabled='no' name='secure-boot'/></firmware>"
    "<loader type='pflash' readonly='yes'>/code</loader><nvram>/vars</nvram></os>"
)
SYSINFO = (
    "<os><type machine='q35'>hvm</type><smbios mode='sysinfo'/></os>"
    "<sysinfo type='smbios'><system><entry name='product'>p</entry></system></sysinfo>"
)
_DISK_OF_HTTP = (
    "<disk type='network'><source protocol='http' name='i'><host name='h'/>{}</source><target dev='vda' bus='virtio'/></disk>"
)
_ACCELERATED = "<video><model type='virtio'><acceleration accel3d='yes'/></model></video>"
_SCSI = "<controller type='scsi' model='virtio-scsi'/>"


@dataclass(frozen=True)
class Sample:
    """One row: what it is called, the XML, where in a domain that goes, and what it is compared with."""

    name: str
    xml: str
    place: str
    base: str = ""


def _at(place: str, *rows: tuple[str, str] | tuple[str, str, str]) -> tuple[Sample, ...]:
    return tuple(Sample(row[0], row[1], place, *row[2:]) for row in rows)


SECTIONS: dict[str, tuple[Sample, ...]] = {
    "General": _at(
        "domain",
        ("title, description", "<title>t</title><description>d</description>"),
        ("metadata", "<metadata><a/></metadata>"),
        ("genid", "<genid/>"),
        ("resource", "<resource><partition>/p</partition></resource>"),
        ("seclabel", "<seclabel type='none'/>"),
        ("idmap", "<idmap><uid start='0' target='1' count='1'/></idmap>"),
        ("on_poweroff = destroy", "<on_poweroff>destroy</on_poweroff>"),
        ("on_poweroff = restart", "<on_poweroff>restart</on_poweroff>"),
        ("on_reboot = destroy", "<on_reboot>destroy</on_reboot>"),
        ("on_crash = preserve", "<on_crash>preserve</on_crash>"),
        ("on_crash = coredump-destroy", "<on_crash>coredump-destroy</on_crash>"),
        ("pm", "<pm><suspend-to-mem enabled='no'/></pm>"),
        ("perf", "<perf><event name='cmt' enabled='yes'/></perf>"),
        ("launchSecurity", "<launchSecurity type='sev'/>"),
        ("sysinfo = smbios, without os/smbios", "<sysinfo type='smbios'><bios><entry name='vendor'>v</entry></bios></sysinfo>"),
        ("sysinfo = fwcfg", "<sysinfo type='fwcfg'><entry name='opt/a'>b</entry></sysinfo>"),
        ("on_lockfailure", "<on_lockfailure>poweroff</on_lockfailure>"),
        ("qemu:commandline", "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'/>"),
    ),
    "CPU and memory": _at(
        "domain",
        ("vcpu, @current", "<vcpu current='1'>2</vcpu>"),
        ("vcpu/@cpuset, @placement", "<vcpu placement='static' cpuset='0'>1</vcpu>"),
        ("vcpus", "<vcpus/>"),
        ("cputune/shares", "<cputune><shares>512</shares></cputune>"),
        ("cputune/vcpupin", "<cputune><vcpupin vcpu='0' cpuset='0'/></cputune>"),
        ("cputune/period, quota", "<cputune><period>1000</period></cputune>"),
        ("iothreads", "<iothreads>2</iothreads>"),
        ("iothreadids", "<iothreadids><iothread id='3'/></iothreadids>"),
        ("defaultiothread", "<defaultiothread thread_pool_max='8'/>"),
        ("cpu = custom, model", "<cpu><model>Nehalem</model></cpu>"),
        ("cpu/feature", "<cpu><model>Nehalem</model><feature policy='disable' name='vmx'/></cpu>"),
        ("cpu/@check", "<cpu check='full'><model>Nehalem</model></cpu>"),
        ("cpu/@mode = maximum", "<cpu mode='maximum'/>"),
        ("cpu/@match = minimum", "<cpu match='minimum'><model>Nehalem</model></cpu>"),
        ("cpu/topology", "<vcpu>4</vcpu><cpu><topology sockets='1' cores='2' threads='2'/></cpu>"),
        ("cpu/cache", "<cpu><model>Nehalem</model><cache mode='disable'/></cpu>"),
        ("cpu/maxphysaddr", "<cpu><model>Nehalem</model><maxphysaddr mode='emulate' bits='42'/></cpu>"),
        ("cpu/numa/cell", "<cpu><numa><cell id='0' cpus='0' memory='16384'/></numa></cpu>"),
        ("currentMemory (with a balloon)", "<currentMemory>8192</currentMemory><!-- <memballoon -->"),
        ("maxMemory", "<maxMemory slots='2' unit='GiB'>2</maxMemory>"),
        ("memtune", "<memtune><hard_limit>1</hard_limit></memtune>"),
        (
            "numatune",
            "<memoryBacking><source type='memfd'/></memoryBacking><numatune><memory mode='strict' nodeset='0'/></numatune>",
        ),
        ("memoryBacking/hugepages", "<memoryBacking><hugepages/></memoryBacking>"),
        ("memoryBacking/source = memfd", "<memoryBacking><source type='memfd'/></memoryBacking>"),
        ("memoryBacking/source = file", "<memoryBacking><source type='file'/></memoryBacking>"),
        ("memoryBacking/access", "<memoryBacking><access mode='shared'/></memoryBacking>"),
        ("memoryBacking/allocation", "<memoryBacking><allocation mode='immediate'/></memoryBacking>"),
        ("memoryBacking/locked", "<memoryBacking><locked/></memoryBacking>"),
        ("memoryBacking/nosharepages", "<memoryBacking><nosharepages/></memoryBacking>"),
        ("blkiotune", "<blkiotune><weight>500</weight></blkiotune>"),
    ),
    "Booting": _at(
        "os",
        ("kernel, initrd, cmdline", "<kernel>/k</kernel><initrd>/i</initrd><cmdline>c</cmdline>"),
        ("loader = rom", "<loader type='rom'>/bios</loader>"),
        ("loader = pflash, nvram", "<loader type='pflash' readonly='yes'>/code</loader><nvram>/vars</nvram>"),
        ("loader/@secure", "<loader type='pflash' readonly='yes' secure='yes' stateless='yes'>/code</loader>"),
        ("loader = pflash, read-only, without nvram or @stateless", "<loader type='pflash' readonly='yes'>/code</loader>"),
        ("nvram/@template (the file has to be there)", "<loader type='pflash'>/code</loader><nvram template='/t'>/vars</nvram>"),
        ("boot dev = hd, cdrom, network, fd", "<boot dev='network'/>"),
        ("bootmenu", "<bootmenu enable='yes' timeout='3000'/>"),
        ("bios/@rebootTimeout", "<bios rebootTimeout='0'/>"),
        ("bios/@useserial", "<bios useserial='yes'/>"),
        ("smbios = emulate", "<smbios mode='emulate'/>"),
        ("acpi/table", "<acpi><table type='slic'>/t</table></acpi>"),
        ("dtb", "<dtb>/d</dtb>"),
    )
    + _at(
        "domain",
        ("@firmware = efi, with the paths of loader and nvram", EFI),
        ("@firmware = efi, without", EFI.replace("/code", "")),
        ("smbios = sysinfo, with sysinfo", SYSINFO),
    ),
    "Features and clocks": _at(
        "domain",
        ("features/acpi", "<features><acpi/></features>"),
        ("features/apic, pae, hap", "<features><apic/><pae/><hap/></features>"),
        ("features/apic/@eoi", "<features><apic eoi='on'/></features>"),
        ("features/hyperv", "<features><hyperv><relaxed state='on'/></hyperv></features>"),
        ("features/kvm", "<features><kvm><hidden state='on'/></kvm></features>"),
        ("features/xen", "<features><xen><e820_host state='on'/></xen></features>"),
        ("features/pvspinlock", "<features><pvspinlock state='on'/></features>"),
        ("features/pmu", "<features><pmu state='off'/></features>"),
        ("features/smm", "<features><smm state='off'/></features>"),
        ("features/vmport", "<features><vmport state='off'/></features>"),
        ("features/ioapic", "<features><ioapic driver='kvm'/></features>"),
        ("features/vmcoreinfo", "<features><vmcoreinfo state='on'/></features>"),
        ("features/ras", "<features><ras state='on'/></features>"),
        ("clock = utc, localtime", "<clock offset='localtime'/>"),
        ("clock = absolute", "<clock offset='absolute' start='0'/>"),
        ("clock = variable, adjustment 0", "<clock offset='variable' basis='localtime' adjustment='0'/>"),
        ("clock = variable, other adjustment", "<clock offset='variable' adjustment='60'/>"),
        ("clock = timezone", "<clock offset='timezone' timezone='Europe/Rome'/>"),
        ("timer rtc, @track", "<clock offset='utc'><timer name='rtc' track='guest'/></clock>"),
        ("timer rtc, @tickpolicy", "<clock offset='utc'><timer name='rtc' tickpolicy='catchup'/></clock>"),
        ("timer pit", "<clock offset='utc'><timer name='pit' tickpolicy='delay'/></clock>"),
        ("timer hpet", "<clock offset='utc'><timer name='hpet' present='no'/></clock>"),
        ("timer kvmclock", "<clock offset='utc'><timer name='kvmclock' present='no'/></clock>"),
        ("timer hypervclock", "<clock offset='utc'><timer name='hypervclock' present='yes'/></clock>"),
        ("timer tsc", "<clock offset='utc'><timer name='tsc' frequency='1000000000'/></clock>"),
        ("timer platform", "<clock offset='utc'><timer name='platform'/></clock>"),
    ),
    "Disks": _at(
        "devices",
        ("disk = file", DISK.format(inside="")),
        ("disk = block", "<disk type='block'><source dev='/dev/sdx'/><target dev='vda'/></disk>"),
        ("disk = network, nbd", "<disk type='network'><source protocol='nbd'><host name='h'/></source><target dev='vda'/></disk>"),
        (
            "disk = network, rbd, iscsi, gluster, nfs, ssh, http, https, ftp, ftps",
            "<disk type='network'><source protocol='rbd' name='pool/image'><host name='h'/></source><target dev='vda'/></disk>",
        ),
        ("disk = network: cookies", _DISK_OF_HTTP.format("<cookies><cookie name='a'>b</cookie></cookies>")),
        (
            "disk = vhostuser (blocks migration)",
            "<disk type='vhostuser'><source type='unix' path='/s'/><target dev='vda' bus='virtio'/></disk>",
        ),
        ("disk = volume, dir, nvme", "<disk type='volume'><source/><target dev='vda'/></disk>"),
        ("device = cdrom, bus = sata", "<disk device='cdrom'><target dev='sda' bus='sata'/></disk>"),
        ("device = floppy", "<disk device='floppy'><source file='/f'/><target dev='fda'/></disk>"),
        ("device = lun", f"{_SCSI}<disk type='block' device='lun'><source dev='/dev/sdx'/><target dev='sda'/></disk>"),
        ("bus = scsi", f"{_SCSI}<disk><source file='/d'/><target dev='sda'/></disk>"),
        ("bus = usb", "<controller type='usb'/><disk><source file='/d'/><target dev='sda' bus='usb'/></disk>"),
        ("bus = sd, xen", "<disk><source file='/d'/><target dev='sda' bus='sd'/></disk>"),
        ("driver/@type = qcow2, raw, vmdk, vdi, ...", DISK.format(inside="<driver type='qcow2'/>")),
        ("driver/@cache, @io", DISK.format(inside="<driver cache='none' io='native'/>")),
        ("driver/@discard, @detect_zeroes", DISK.format(inside="<driver discard='unmap' detect_zeroes='on'/>")),
        ("driver/@copy_on_read", DISK.format(inside="<driver copy_on_read='on'/>")),
        ("driver/@error_policy", DISK.format(inside="<driver error_policy='report'/>")),
        ("driver/@queues, @queue_size", DISK.format(inside="<driver queues='2'/>")),
        ("backingStore", DISK.format(inside="<backingStore type='file'><format type='raw'/><source file='/b'/></backingStore>")),
        ("@snapshot", DISK.replace("device=", "snapshot='no' device=").format(inside=""), DISK.format(inside="")),
        ("mirror", DISK.format(inside="<mirror/>")),
        ("readonly", DISK.format(inside="<readonly/>")),
        ("shareable", DISK.format(inside="<shareable/>")),
        ("transient", DISK.format(inside="<transient/>")),
        ("serial, wwn, vendor, product", DISK.format(inside="<serial>S1</serial>")),
        ("boot/@order", DISK.format(inside="<boot order='2'/>")),
        ("iotune", DISK.format(inside="<iotune><total_iops_sec>9</total_iops_sec></iotune>")),
        ("geometry", "<disk><source file='/d'/><target dev='vda'/><geometry cyls='9' heads='9' secs='9'/></disk>"),
        ("blockio", DISK.format(inside="<blockio logical_block_size='4096'/>")),
        (
            "auth, encryption = luks (secrets are files in /etc/ferry/secrets)",
            DISK.format(inside="<encryption format='luks'><secret type='passphrase' usage='web'/></encryption>"),
        ),
        ("throttlefilters", DISK.format(inside="<throttlefilters/>")),
    ),
    "Controllers": _at(
        "devices",
        ("pci: root ports, bridges, switches", "<controller type='pci' index='1' model='pcie-root-port'/>"),
        ("pci: expander buses", "<controller type='pci' index='1' model='pcie-expander-bus'/>"),
        ("usb", "<controller type='usb' index='0' model='qemu-xhci'/>"),
        ("scsi: virtio-scsi, lsilogic, ...", _SCSI),
        ("scsi: ibmvscsi", "<controller type='scsi' model='ibmvscsi'/>"),
        ("sata", "<controller type='sata' index='1'/>"),
        ("virtio-serial", "<controller type='virtio-serial'/>"),
        ("ccid", "<controller type='usb'/><controller type='ccid'/>"),
        ("xenbus, nvme", "<controller type='xenbus'/>"),
        ("alias (ua-...)", DISK.format(inside="<alias name='ua-mine'/>")),
        ("address", DISK.format(inside="<address type='pci' bus='0' slot='5'/>")),
    ),
    "Network": _at(
        "devices",
        ("interface = user", CARD.format(inside="")),
        ("interface = bridge", "<interface type='bridge'><source bridge='b'/><model type='virtio'/></interface>"),
        ("interface = ethernet", "<interface type='ethernet'><target dev='t'/><model type='virtio'/></interface>"),
        ("interface = server, client, udp, mcast", "<interface type='server'><source port='1'/></interface>"),
        (
            "interface = network, with the bridge in its source (as of a domain that runs)",
            "<interface type='network'><source network='n' bridge='virbr0'/></interface>",
        ),
        (
            "interface = network, default (its bridge is virbr0)",
            "<interface type='network'><source network='default'/></interface>",
        ),
        (
            "interface = vhostuser, vdpa (block migration)",
            "<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/><model type='virtio'/></interface>",
        ),
        (
            "interface = network without, direct, hostdev",
            "<interface type='network'><source network='n'/></interface>",
        ),
        ("rom", CARD.format(inside="<rom enabled='no'/>")),
        ("acpi/@index", CARD.format(inside="<acpi index='1'/>")),
        ("model: virtio, e1000, e1000e, rtl8139, ...", "<interface type='user'><model type='e1000e'/></interface>"),
        ("mac", CARD.format(inside="<mac address='52:54:00:00:00:01'/>")),
        (
            "driver/@name = vhost, @queues",
            "<interface type='ethernet'><model type='virtio'/><driver name='vhost' queues='2'/></interface>",
        ),
        ("driver/host, guest", CARD.format(inside="<driver><host csum='off'/></driver>")),
        ("mtu", CARD.format(inside="<mtu size='1400'/>")),
        ("ip (of type user)", CARD.format(inside="<ip family='ipv4' address='10.1.0.0' prefix='24'/>")),
        ("link = up", CARD.format(inside="<link state='up'/>")),
        ("link = down", CARD.format(inside="<link state='down'/>")),
        ("bandwidth", CARD.format(inside="<bandwidth/>")),
        ("vlan, virtualport, filterref", CARD.format(inside="<filterref filter='f'/>")),
        ("coalesce, teaming, backend", CARD.format(inside="<coalesce/>")),
    ),
    "Lines": _at(
        "devices",
        ("serial: isa, pci, usb", "<serial type='pty'/>"),
        ("parallel", "<parallel type='file'><source path='/p'/></parallel>"),
        ("console: serial, virtio", "<console type='pty'><target type='virtio'/></console>"),
        ("channel: virtio", "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"),
        (
            "channel: guestfwd",
            "<channel type='unix'><source path='/c'/><target type='guestfwd' address='10.0.2.1' port='1'/></channel>",
        ),
        ("channel: spicevmc, spiceport", "<graphics type='spice'/><channel type='spicevmc'><target type='virtio'/></channel>"),
        (
            "type = pty, file, unix, tcp, udp, dev, pipe, null, stdio, vc",
            "<serial type='tcp'><source host='h' service='1'/></serial>",
        ),
        ("source/@tls = yes", "<serial type='tcp'><source host='h' service='1' tls='yes'/></serial>"),
        ("log", "<serial type='pty'><log file='/l'/></serial>"),
    ),
    "Displays and input": _at(
        "devices",
        ("graphics = vnc", "<graphics type='vnc'/>"),
        ("graphics = vnc, @passwd", "<graphics type='vnc' passwd='p'/>"),
        ("graphics = spice", "<graphics type='spice' autoport='yes'/>"),
        (
            "graphics = spice: channel = secure, tlsPort, gl",
            "<graphics type='spice' port='5900' tlsPort='5901'><channel name='main' mode='secure'/></graphics>",
        ),
        ("graphics = spice, @passwd", "<graphics type='spice' passwd='p'/>"),
        ("graphics = sdl, egl-headless, dbus", "<graphics type='egl-headless'/>"),
        ("graphics = rdp", "<graphics type='rdp'/>"),
        ("video: vga, cirrus, qxl, virtio, bochs, vmvga, ramfb", "<video><model type='virtio'/></video>"),
        (
            "video/acceleration = yes (blocks migration)",
            _ACCELERATED,
        ),
        ("input: mouse, tablet, keyboard on usb, virtio", "<input type='tablet' bus='virtio'/>"),
        ("input on ps2", "<input type='mouse' bus='ps2'/>"),
        ("input = passthrough, evdev (blocks migration)", "<input type='evdev'><source dev='/dev/input/event1'/></input>"),
        ("sound", "<sound model='ich9'/>"),
        ("audio = none, file, spice", "<audio id='2' type='none'/>"),
        ("audio = alsa, pulseaudio, pipewire, jack, oss, sdl, coreaudio, dbus", "<audio id='1' type='alsa'/>"),
    ),
    "Other devices": _at(
        "devices",
        ("memballoon", "<memballoon model='virtio' autodeflate='on'/>"),
        ("rng: random, builtin", "<rng model='virtio'><backend model='builtin'/></rng>"),
        ("rng: egd", "<rng model='virtio'><backend model='egd' type='udp'/></rng>"),
        ("watchdog", "<watchdog model='i6300esb' action='reset'/>"),
        ("panic", "<panic model='isa'/>"),
        ("tpm: emulator", "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"),
        ("tpm: passthrough, external", "<tpm><backend type='passthrough'/></tpm>"),
        ("vsock", "<vsock><cid auto='yes'/></vsock>"),
        ("iommu", "<iommu model='intel'/>"),
        ("memory: dimm, nvdimm, virtio-mem", "<memory model='virtio-mem'><target><size unit='MiB'>2</size></target></memory>"),
        ("memory: virtio-pmem, sgx-epc", "<memory model='virtio-pmem'><target><size>2</size></target></memory>"),
        ("filesystem: 9p (blocks migration)", "<filesystem type='mount'><source dir='/s'/><target dir='t'/></filesystem>"),
        (
            "filesystem: virtiofs",
            "<filesystem type='mount'><driver type='virtiofs'/><source dir='/s'/><target dir='t'/></filesystem>",
        ),
        (
            "hostdev: pci, usb, mdev, scsi_host (block migration)",
            "<hostdev mode='subsystem' type='pci'><source><address slot='1'/></source></hostdev>",
        ),
        ("hostdev: scsi, capabilities", "<hostdev mode='subsystem' type='scsi'><source/></hostdev>"),
        ("redirdev: unix, tcp, spicevmc", "<controller type='usb'/><redirdev bus='usb' type='unix'><source path='/r'/></redirdev>"),
        ("hub", "<controller type='usb'/><hub type='usb'/>"),
        ("smartcard, shmem, crypto, lease, nvram, pstore", "<shmem name='s'/>"),
    ),
}
