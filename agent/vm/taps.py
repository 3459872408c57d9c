"""Tap devices for network cards, opened here and handed to QEMU as file descriptors.

So QEMU needs no privileges and runs no scripts. A device that is not persistent goes when its last descriptor closes,
that is with QEMU.

A bridge whose address or MTU nobody set takes them from its ports. So a tap has an address that no bridge takes over, and an MTU
not below the bridge's, before it becomes a port. A device that was there before and is put on no bridge is left as it is.

Source: Documentation/networking/tuntap.rst, linux/if_tun.h, linux/sockios.h, netdevice(7).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.vm.argv import TapFds
from agent.vm.bridges import wanted_mtu
from agent.vm.links import add_port, find_mtu, get_mac, set_mac, set_mtu, tap_mac
from common.errors import WrongState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent.vm.definition import Definition, Tap

_TUNSETIFF = 0x400454CA
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_IFF_TAP = 0x2
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_MULTI_QUEUE = 0x0100
_VHOST = "/dev/vhost-net"
_NAME_AND_FLAGS = struct.Struct("16sH22x")  # struct ifreq with ifr_flags


@contextlib.contextmanager
def open_taps(definition: Definition) -> Iterator[Mapping[str, TapFds]]:
    """Open the tap devices of a VM, by the netdev that each is for; the descriptors close with the block.

    Raises:
        WrongState: the host refused; the text names the device.
    """
    with contextlib.ExitStack() as descriptors:
        opened: dict[str, TapFds] = {}
        macs = {device.get("netdev"): device.get("mac") for device in definition.find("device")}
        for tap in definition.taps:
            look = _Look(macs.get(tap.netdev), wanted_mtu(definition, tap.netdev))
            fds = _open_queues(tap, look, descriptors)
            vhost = [_open(_VHOST, _VHOST, descriptors) for _ in fds] if tap.has_vhost else []
            opened[tap.netdev] = TapFds(fds, vhost)
        yield opened


@dataclass(frozen=True, slots=True)
class _Look:
    """What a tap is to be like: by the address of its card, and the MTU that the card tells its guest."""

    card_mac: str | None
    card_mtu: int | None

    def put_on(self, device: str, bridge: str | None) -> None:
        """Give a tap its address and MTU."""
        card = bytes.fromhex(self.card_mac.replace(":", "")) if self.card_mac else get_mac(device)
        set_mac(device, tap_mac(card))
        of_bridge = None if bridge is None else find_mtu(bridge)
        if mtus := [mtu for mtu in (self.card_mtu, of_bridge) if mtu is not None]:
            set_mtu(device, max(mtus))


def _open_queues(tap: Tap, look: _Look, descriptors: contextlib.ExitStack) -> list[int]:
    what = f"network device {tap.device or 'vnet%d'}"
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if tap.queue_count > 1 else 0)
    name = (tap.device or "vnet%d").encode()
    queues = []
    was_there = tap.device is not None and find_mtu(tap.device) is not None
    try:
        for _ in range(tap.queue_count):
            queues.append(_open("/dev/net/tun", what, descriptors))
            (name, _) = _NAME_AND_FLAGS.unpack(fcntl.ioctl(queues[-1], _TUNSETIFF, _NAME_AND_FLAGS.pack(name, flags)))
        device = name.rstrip(b"\0").decode()
        if tap.bridge is not None or not was_there:
            look.put_on(device, tap.bridge)
        if tap.bridge is not None:
            what = f"bridge {tap.bridge}"
            add_port(tap.bridge, device)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            _set_up(control, name)
    except OSError as error:
        raise _refused(what, error) from error
    return queues


def _open(path: str, what: str, descriptors: contextlib.ExitStack) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _refused(what, error) from error
    descriptors.callback(os.close, descriptor)
    return descriptor


def _set_up(control: socket.socket, name: bytes) -> None:
    (_, flags) = _NAME_AND_FLAGS.unpack(fcntl.ioctl(control, _SIOCGIFFLAGS, _NAME_AND_FLAGS.pack(name, 0)))
    if not flags & _IFF_UP:
        fcntl.ioctl(control, _SIOCSIFFLAGS, _NAME_AND_FLAGS.pack(name, flags | _IFF_UP))


def _refused(what: str, error: OSError) -> WrongState:
    return WrongState(f"{what}: {error.strerror or error}", reason="NETWORK_DEVICE_REFUSED", device=what)
