"""Open the taps of a VM again and again, as its starts do, and look at their bridge meanwhile.

    python -m tests.qemu.tap_starts BRIDGE COUNT [MTU]

prints JSON: the addresses and MTUs that the bridge had, and those of the taps; in the network namespace that it is run in.
"""

from __future__ import annotations

import json
import socket
import sys

from agent.vm.links import find_mtu, get_mac
from agent.vm.taps import open_taps
from tests.unit.agent.vm.samples import domain, parse

DEVICE = "tap-x"


def main(bridge: str, count: int, mtu: str) -> None:
    """Do it."""
    bridges, taps = {look(bridge)}, set()
    for number in range(count):
        mac = f"52:54:00:{number % 251:02x}:{number % 13:02x}:{number % 7:02x}"
        size = f"<mtu size='{mtu}'/>" if mtu else ""
        card = f"""<interface type='bridge'><source bridge='{bridge}'/><target dev='{DEVICE}'/><mac address='{mac}'/>
                   <model type='virtio'/>{size}</interface>"""
        with open_taps(parse(domain(devices=card))):
            bridges.add(look(bridge))
            tap_mac, tap_mtu = look(DEVICE)
            taps.add((tap_mac == f"fe{mac[2:]}", tap_mtu))
        bridges.add(look(bridge))
        while DEVICE in (name for _, name in socket.if_nameindex()):
            pass  # the kernel removes it a moment later
    print(json.dumps({"bridge": sorted(bridges), "taps": sorted(taps)}))


def look(name: str) -> tuple[str, int | None]:
    """Tell the address and the MTU of an interface."""
    return get_mac(name).hex(":"), find_mtu(name)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), "".join(sys.argv[3:]))
