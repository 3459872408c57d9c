"""Network interfaces of this host: their MTU and address, and bridges. Asked by ioctl, so in the network namespace of the agent.

Source: netdevice(7), linux/sockios.h, linux/ethtool.h `ethtool_drvinfo`, net/bridge/br_if.c and br_stp_if.c.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

_SIOCGIFMTU: Final = 0x8921
_SIOCSIFMTU: Final = 0x8922
_SIOCSIFHWADDR: Final = 0x8924
_SIOCGIFHWADDR: Final = 0x8927
_SIOCETHTOOL: Final = 0x8946
_SIOCBRADDIF: Final = 0x89A2
_ETHTOOL_GDRVINFO: Final = 0x3
_DRVINFO: Final = struct.Struct("I32s160x")
_ARPHRD_ETHER: Final = 1
_NAME_AND_INT: Final = struct.Struct("16si20x")  # struct ifreq with ifr_mtu or ifr_ifindex
_NAME_AND_ADDRESS: Final = struct.Struct("16sH6s16x")  # struct ifreq with ifr_hwaddr
_NAME_AND_POINTER: Final = struct.Struct("16sP16x")
_NET: Final = Path("/sys/class/net")

# An address that begins so is of a tap: higher than that of any real card, so that no bridge takes it for its own.
TAP_OCTET: Final = 0xFE
_OTHER_TAP_OCTET: Final = 0xFA


def find_mtu(name: str) -> int | None:
    """Return the MTU of an interface; None when there is none of this name."""
    try:
        (_, mtu) = _NAME_AND_INT.unpack(_control(_SIOCGIFMTU, _NAME_AND_INT.pack(name.encode(), 0)))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    return int(mtu)


def set_mtu(name: str, mtu: int) -> None:
    """Set the MTU of an interface. The MTU of a bridge that nobody set follows the least one of its ports."""
    _control(_SIOCSIFMTU, _NAME_AND_INT.pack(name.encode(), mtu))


def get_mac(name: str) -> bytes:
    """Return the address of an interface."""
    (_, _, mac) = _NAME_AND_ADDRESS.unpack(_control(_SIOCGIFHWADDR, _NAME_AND_ADDRESS.pack(name.encode(), 0, bytes(6))))
    return bytes(mac)


def set_mac(name: str, mac: bytes) -> None:
    """Set the address of an interface; a bridge keeps it from then on, whatever its ports have."""
    _control(_SIOCSIFHWADDR, _NAME_AND_ADDRESS.pack(name.encode(), _ARPHRD_ETHER, mac))


def is_bridge(name: str) -> bool:
    """Say whether an interface is a bridge of the kernel, which taps can be ports of."""
    info = ctypes.create_string_buffer(_DRVINFO.pack(_ETHTOOL_GDRVINFO, b""))
    with suppress(OSError):
        _control(_SIOCETHTOOL, _NAME_AND_POINTER.pack(name.encode(), ctypes.addressof(info)))
        return bytes(_DRVINFO.unpack(info.raw[: _DRVINFO.size])[1]).rstrip(b"\0") == b"bridge"
    return False


def has_ports(bridge: str) -> bool:
    """Say whether a bridge has a port; of one that cannot be looked at: yes."""
    try:
        return any((_NET / bridge / "brif").iterdir())
    except OSError:
        return True


def tap_mac(card: bytes) -> bytes:
    """Return the address of the tap behind a card: never the card's own, and none that a bridge would take over."""
    first = _OTHER_TAP_OCTET if card[0] == TAP_OCTET else TAP_OCTET
    return bytes((first, *card[1:]))


def add_port(bridge: str, port: str) -> None:
    """Make an interface a port of a bridge, whose address stays what it is.

    A bridge whose address nobody set takes the lowest one of its ports, and gives it up with that port. Where this port's would
    become the bridge's, as in one that has taps alone, the bridge's own is set, as `ip link set address` does.
    """
    mac = get_mac(bridge)
    is_own = any(mac)
    if is_own and (mac[0] == TAP_OCTET or get_mac(port) < mac or not has_ports(bridge)):
        set_mac(bridge, mac)
    _control(_SIOCBRADDIF, _NAME_AND_INT.pack(bridge.encode(), socket.if_nametoindex(port)))
    if is_own and get_mac(bridge) != mac:
        set_mac(bridge, mac)


def _control(request: int, argument: bytes) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        return fcntl.ioctl(control, request, argument)
