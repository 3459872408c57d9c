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

from agent.vm.argv import TapFds
from common.errors import WrongState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from agent.vm.definition import Tap

_TUNSETIFF = 0x400454CA
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCBRADDIF = 0x89A2
_IFF_UP = 0x1
_IFF_TAP = 0x2
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_MULTI_QUEUE = 0x0100
_VHOST = "/dev/vhost-net"
_NAME_AND_FLAGS = struct.Struct("16sH22x")  # struct ifreq with ifr_flags
_NAME_AND_INDEX = struct.Struct("16si20x")  # struct ifreq with ifr_ifindex


@contextlib.contextmanager
def open_taps(taps: Sequence[Tap]) -> Iterator[Mapping[str, TapFds]]:
    """Open the tap devices, by the netdev that each is for; the descriptors close with the block.

    Raises:
        WrongState: the host refused; the text names the device.
    """
    with contextlib.ExitStack() as descriptors:
        opened: dict[str, TapFds] = {}
        for tap in taps:
            fds = _open_queues(tap, descriptors)
            vhost = [_open(_VHOST, _VHOST, descriptors) for _ in fds] if tap.has_vhost else []
            opened[tap.netdev] = TapFds(fds, vhost)
        yield opened


def _open_queues(tap: Tap, descriptors: contextlib.ExitStack) -> list[int]:
    what = f"network device {tap.device or 'vnet%d'}"
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if tap.queue_count > 1 else 0)
    name = (tap.device or "vnet%d").encode()
    queues = []
    try:
        for _ in range(tap.queue_count):
            queues.append(_open("/dev/net/tun", what, descriptors))
            (name, _) = _NAME_AND_FLAGS.unpack(fcntl.ioctl(queues[-1], _TUNSETIFF, _NAME_AND_FLAGS.pack(name, flags)))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            if tap.bridge is not None:
                what = f"bridge {tap.bridge}"
                index = socket.if_nametoindex(name.rstrip(b"\0").decode())
                fcntl.ioctl(control, _SIOCBRADDIF, _NAME_AND_INDEX.pack(tap.bridge.encode(), index))
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
