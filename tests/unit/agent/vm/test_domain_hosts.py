"""What hangs on the host: displays of desktops and GPUs, sound, vhost-user; and controllers that belong together."""

from __future__ import annotations

import pytest

from agent.vm.definition import Definition
from common.errors import InvalidRequest
from tests.unit.agent.vm.samples import domain, parse


def options(definition: Definition, name: str) -> list[dict[str, object]]:
    return [option.properties for option in definition.find(name)]


@pytest.mark.parametrize(
    ("xml", "wanted"),
    [
        ("<graphics type='sdl'/>", {"type": "sdl"}),
        (
            "<graphics type='egl-headless'><gl rendernode='/dev/dri/r'/></graphics>",
            {"type": "egl-headless", "rendernode": "/dev/dri/r"},
        ),
        (
            "<graphics type='dbus' address='unix:path=/b'><gl enable='yes'/></graphics>",
            {"type": "dbus", "addr": "unix:path=/b", "gl": True},
        ),
    ],
)
def test_a_display_of_a_desktop_or_a_gpu_is_carried(xml, wanted):
    assert options(parse(domain(devices=xml)), "display") == [wanted]


def test_two_of_them_are_refused():
    with pytest.raises(InvalidRequest, match="exclude each other"):
        parse(domain(devices="<graphics type='sdl'/><graphics type='egl-headless'/>"))


def test_spice_has_its_encrypted_port_and_channels():
    xml = "<graphics type='spice' port='5900' tlsPort='5901' defaultMode='secure'><channel name='main' mode='insecure'/></graphics>"

    [spice] = options(parse(domain(devices=xml)), "spice")

    assert (spice["tls-port"], spice["x509-dir"]) == (5901, "/etc/pki/libvirt-spice")
    assert (spice["tls-channel"], spice["plaintext-channel"]) == (["default"], ["main"])


def test_a_secure_channel_without_an_encrypted_port_is_refused():
    with pytest.raises(InvalidRequest, match="without tlsPort"):
        parse(domain(devices="<graphics type='spice'><channel name='main' mode='secure'/></graphics>"))


def test_sound_goes_where_the_xml_says():
    xml = (
        "<sound model='ich9'/><audio id='1' type='pulseaudio' serverName='s' timerPeriod='40'>"
        "<input streamName='i'/><output latency='5' mixingEngine='no'/></audio>"
    )

    [audio] = options(parse(domain(devices=xml)), "audiodev")

    assert audio == {
        "id": "audio1",
        "driver": "pa",
        "timer-period": 40,
        "server": "s",
        "in": {"stream-name": "i"},
        "out": {"mixing-engine": False, "latency": 5},
    }


@pytest.mark.parametrize(
    ("xml", "blocker"),
    [
        ("<disk type='vhostuser'><source type='unix' path='/s'/><target dev='vda' bus='virtio'/></disk>", "disk vda"),
        (
            "<interface type='vhostuser'><source type='unix' path='/s' mode='server'/><model type='virtio'/></interface>",
            "card net0",
        ),
        ("<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/><model type='virtio'/></interface>", "card net0"),
        ("<video><model type='virtio'><acceleration accel3d='yes'/></model></video>", "3D acceleration"),
    ],
)
def test_what_another_process_of_the_host_has_a_part_of_stays_there(xml, blocker):
    [found] = parse(domain(devices=xml)).blockers

    assert blocker in found


def test_companions_belong_to_the_controller_of_their_index_wherever_it_stands():
    xml = (
        "<controller type='usb' index='0' model='ich9-uhci1'><alias name='ua-first'/><master startport='0'/></controller>"
        "<controller type='usb' index='0' model='ich9-ehci1'><alias name='ua-main'/></controller>"
    )

    devices = options(parse(domain(devices=xml)), "device")

    assert next(one for one in devices if one["driver"] == "ich9-usb-uhci1")["masterbus"] == "ua-main.0"


def test_downstream_ports_sit_on_their_switch():
    models = ("pcie-root-port", "pcie-switch-upstream-port", "pcie-switch-downstream-port", "pcie-switch-downstream-port")
    xml = "".join(f"<controller type='pci' index='{index}' model='{model}'/>" for index, model in enumerate(models, start=1))
    definition = parse(domain(devices=xml))

    ports = [one for one in options(definition, "device") if one["driver"] == "xio3130-downstream"]
    assert [(one["bus"], one["addr"]) for one in ports] == [("pci.2", "0x0"), ("pci.2", "0x1")]


def test_the_default_network_of_libvirt_is_its_bridge():
    xml = "<interface type='network'><source network='default'/><model type='virtio'/></interface>"

    assert parse(domain(devices=xml)).taps[0].bridge == "virbr0"
