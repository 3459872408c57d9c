"""Tap devices for network cards, opened here and handed to QEMU as file descriptors.

So QEMU needs no privileges and runs no scripts. A device that is not persistent goes when its last descriptor closes,
that is with QEMU.

Source: Documentation/networking/tuntap.rst, linux/if_tun.h, linux/sockios.h, netdevice(7).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from typing import TYPE_CHECKING

from agent.vm.devices import InterfaceKind
from common.errors import WrongState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from agent.vm.devices import Interface

_TUNSETIFF = 0x400454CA
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCBRADDIF = 0x89A2
_IFF_UP = 0x1
_IFF_TAP = 0x2
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_NAME_AND_FLAGS = struct.Struct("16sH22x")  # struct ifreq with ifr_flags
_NAME_AND_INDEX = struct.Struct("16si20x")  # struct ifreq with ifr_ifindex


@contextlib.contextmanager
def open_taps(interfaces: Sequence[Interface]) -> Iterator[Mapping[str, int]]:
    """Open the tap device of each card that wants one, by its MAC address; the descriptors close with the block.

    Raises:
        WrongState: the host refused; the text names the device.
    """
    with contextlib.ExitStack() as descriptors:
        opened: dict[str, int] = {}
        for interface in interfaces:
            if interface.kind is InterfaceKind.USER:
                continue
            descriptor = _open_tap(interface)
            descriptors.callback(os.close, descriptor)
            opened[interface.mac] = descriptor
        yield opened


def _open_tap(interface: Interface) -> int:
    what = f"network device {interface.tap or 'vnet%d'}"
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _refused(what, error) from error
    try:
        name = (interface.tap or "vnet%d").encode()
        request = _NAME_AND_FLAGS.pack(name, _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        (given, _) = _NAME_AND_FLAGS.unpack(fcntl.ioctl(descriptor, _TUNSETIFF, request))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            if interface.bridge is not None:
                what = f"bridge {interface.bridge}"
                index = socket.if_nametoindex(given.rstrip(b"\0").decode())
                fcntl.ioctl(control, _SIOCBRADDIF, _NAME_AND_INDEX.pack(interface.bridge.encode(), index))
            _set_up(control, given)
    except OSError as error:
        os.close(descriptor)
        raise _refused(what, error) from error
    return descriptor


def _set_up(control: socket.socket, name: bytes) -> None:
    (_, flags) = _NAME_AND_FLAGS.unpack(fcntl.ioctl(control, _SIOCGIFFLAGS, _NAME_AND_FLAGS.pack(name, 0)))
    if not flags & _IFF_UP:
        fcntl.ioctl(control, _SIOCSIFFLAGS, _NAME_AND_FLAGS.pack(name, flags | _IFF_UP))


def _refused(what: str, error: OSError) -> WrongState:
    return WrongState(f"{what}: {error.strerror or error}", reason="NETWORK_DEVICE_REFUSED", device=what)
