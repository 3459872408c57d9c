"""`<interface>`: network cards and what they are connected to."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from agent.vm import rules
from agent.vm.definition import Tap
from agent.vm.domain.addresses import read_acpi_index, read_alias, read_boot_order, read_pci_address, read_rom
from agent.vm.domain.plan import Device, Slot
from agent.vm.domain.virtio import models, read_switches, slot_of
from agent.vm.options import Option, keyval, of_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.vm.domain.plan import Plan
    from agent.vm.domain.reader import Element

_CARDS: Final = {
    "e1000": ("e1000", Slot.PCI),
    "e1000e": ("e1000e", Slot.EXPRESS),
    "igb": ("igb", Slot.EXPRESS),
    "rtl8139": ("rtl8139", Slot.PCI),
    "ne2k_pci": ("ne2k_pci", Slot.PCI),
    "pcnet": ("pcnet", Slot.PCI),
    "vmxnet3": ("vmxnet3", Slot.EXPRESS),
    "tulip": ("tulip", Slot.PCI),
    "i82551": ("i82551", Slot.PCI),
    "i82557b": ("i82557b", Slot.PCI),
    "i82559er": ("i82559er", Slot.PCI),
}
# Source: include/uapi/linux/if_ether.h ETH_MIN_MTU, drivers/net/tun.c MAX_MTU less a header.
_MTUS: Final = (68, 65521)
_DEFAULT_CARD: Final = "rtl8139"
_PREFIXES: Final = {"ipv4": 24, "ipv6": 64}
_KINDS: Final = ("user", "bridge", "network", "ethernet", "server", "client", "udp", "mcast", "vhostuser", "vdpa")
_DEFAULT_NETWORK: Final = ("default", "virbr0")  # the one network, and its bridge, that every libvirt comes with
_SWITCHES: Final = {"event_idx": "event_idx", "ioeventfd": "ioeventfd", "rss": "rss", "rss_hash_report": "hash"}
_OFFLOADS: Final = {
    "host": {name: name for name in ("csum", "gso", "mrg_rxbuf")}
    | {name: f"host_{name}" for name in ("tso4", "tso6", "ecn", "ufo")},
    "guest": {name: f"guest_{name}" for name in ("csum", "tso4", "tso6", "ecn", "ufo")},
}


def read_interfaces(devices: Element, plan: Plan, new_mac: Callable[[int], str]) -> None:
    """Read every `<interface>`; `new_mac` gives the n-th card its address when the XML does not."""
    for index, element in enumerate(devices.children("interface")):
        _Reader(element, plan, index, new_mac(index)).read()


class _Reader:
    def __init__(self, element: Element, plan: Plan, index: int, new_mac: str) -> None:
        self._element = element
        self._plan = plan
        self._index = index
        self._new_mac = new_mac

    def read(self) -> None:
        element, plan = self._element, self._plan
        kind = element.choice("type", {name: name for name in _KINDS})
        if kind is None:
            raise element.invalid("attribute type is missing")
        model = element.child("model")
        endings = models("virtio") | {"virtio-net": ""}
        card = None if model is None else model.choice("type", {name: name for name in (*_CARDS, *endings)})
        if model is not None:
            model.finish()
        is_virtio = card in endings
        properties, queues, wants_vhost = self._read_driver(is_virtio=is_virtio)
        name = read_alias(element, f"net{self._index}")
        netdev = f"host{name}"
        backends = self._read_backend(
            kind, netdev, queues, has_vhost=wants_vhost and is_virtio and kind in ("bridge", "network", "ethernet")
        )
        mac = self._read_mac()
        self._accept_host_side()
        front, slot = _CARDS[card or _DEFAULT_CARD] if card not in endings else ("virtio-net-pci", slot_of(plan, endings[card]))
        driver = f"{front}{endings.get(card or '', '')}"
        if queues > 1:
            properties |= {"mq": True, "vectors": 2 * queues + 2}
        order = read_boot_order(element)
        address = read_pci_address(element)
        properties |= read_rom(element) | read_acpi_index(element)
        properties = {"driver": driver, **properties, "netdev": netdev, "id": name, "mac": mac}
        device = Device(element, "interface", properties, slot, address, before=backends)
        device.boots_as, device.boot_index = "network", order
        element.finish()
        plan.add(device)

    def _read_mac(self) -> str:
        mac = self._element.child("mac")
        if mac is None:
            return self._new_mac
        address = mac.get_attribute("address").lower()
        mac.accept("type", "static", "generated")
        mac.finish()
        with mac.located():
            rules.check_mac(address)
        return address

    def _read_driver(self, *, is_virtio: bool) -> tuple[dict[str, object], int, bool]:
        driver = self._element.child("driver")
        properties: dict[str, object] = {}
        queues, wants_vhost = 1, False
        if driver is not None:
            wants_vhost = driver.choice("name", {"qemu": False, "vhost": True}) or False
            properties |= read_switches(driver)
            queues = driver.number_attribute("queues") or 1
            for attribute, key in _SWITCHES.items():
                state = driver.switch(attribute)
                if state is not None:
                    properties[key] = state
            transmit = driver.choice("txmode", {"timer": "timer", "iothread": "bh"})
            if transmit is not None:
                properties["tx"] = transmit
            for attribute in ("rx_queue_size", "tx_queue_size"):
                size = driver.number_attribute(attribute)
                if size is not None:
                    properties[attribute] = size
            self._read_offloads(driver, properties)
            driver.finish()
        if not is_virtio and (properties or queues > 1):
            raise self._element.invalid("a driver with these settings needs model virtio")
        mtu = self._element.child("mtu")
        if mtu is not None:
            size = mtu.number(mtu.get_attribute("size"))
            mtu.finish()
            with mtu.located():
                rules.check_range(size, *_MTUS, "bytes of MTU")
            if is_virtio:
                properties["host_mtu"] = size
        return properties, queues, wants_vhost

    def _read_offloads(self, driver: Element, properties: dict[str, object]) -> None:
        for side, names in _OFFLOADS.items():
            element = driver.child(side)
            if element is None:
                continue
            for name, key in names.items():
                state = element.switch(name)
                if state is not None:
                    properties[key] = state
            element.finish()

    def _read_backend(self, kind: str, netdev: str, queues: int, *, has_vhost: bool) -> list[Option]:
        element = self._element
        if kind == "user":
            target = element.child("target")
            if target is not None:  # what libvirt called it last
                target.accept("dev")
                target.finish()
            return [of_json("netdev", {"type": "user", "id": netdev, **self._read_user()})]
        source = element.child("source")
        if kind in ("server", "client", "udp", "mcast"):
            return [self._socket(kind, netdev, source)]
        if kind in ("vhostuser", "vdpa"):
            return self._served(kind, netdev, source, queues)
        bridge = None
        if kind == "bridge":
            bridge = element.get_child("source").get_attribute("bridge") if source is None else source.get_attribute("bridge")
        elif kind == "network":
            bridge = self._bridge_of_network(source)
        if source is not None:
            source.finish()
        target = element.child("target")
        device = None
        if target is not None:
            device = target.attribute("dev")
            target.accept("managed", "no", "yes")  # an existing device is used, a missing one is made
            target.finish()
        with element.located():
            self._plan.taps.append(Tap(netdev, device, bridge, queues, has_vhost))
        return [of_json("netdev", {"type": "tap", "id": netdev})]

    def _served(self, kind: str, netdev: str, source: Element | None, queues: int) -> list[Option]:
        """Read a card that another process, or a device, of the host serves."""
        if source is None:
            raise self._element.invalid("element source is missing")
        path = source.get_attribute("dev" if kind == "vdpa" else "path")
        with source.located():
            rules.check_path(path)
        self._plan.blockers.append(f"network card {netdev.removeprefix('host')} of {path} of the host")
        if kind == "vdpa":
            source.finish()
            return [of_json("netdev", {"type": "vhost-vdpa", "vhostdev": path, "id": netdev})]
        source.choice("type", {"unix": None})
        is_server = source.choice("mode", {"server": True, "client": False}) or False
        source.finish()
        chardev = f"char{netdev.removeprefix('host')}"
        socket: dict[str, object] = {"backend": "socket", "id": chardev, "path": path}
        if is_server:
            socket |= {"server": True, "wait": False}
        words: dict[str, object] = {"type": "vhost-user", "chardev": chardev}
        if queues > 1:
            words["queues"] = queues
        return [keyval("chardev", socket), of_json("netdev", {**words, "id": netdev})]

    def _bridge_of_network(self, source: Element | None) -> str:
        """Name the bridge of a network of libvirt: that of the default one, or what libvirt writes while the domain runs."""
        bridge = None if source is None else source.attribute("bridge")
        if source is not None and bridge is None and source.peek("network") == _DEFAULT_NETWORK[0]:
            bridge = _DEFAULT_NETWORK[1]
        if source is None or bridge is None:
            raise self._element.attribute_not_carried("type", "network, without the bridge in its source")
        for name in ("network", "portid", "portgroup"):
            source.accept(name)
        return bridge

    def _read_user(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for address in self._element.children("ip"):
            family = address.choice("family", {"ipv4": "ipv4", "ipv6": "ipv6"}) or "ipv4"
            text = address.get_attribute("address")
            prefix = address.number_attribute("prefix")
            address.finish()
            try:
                network = ipaddress.ip_interface(f"{text}/{_PREFIXES[family] if prefix is None else prefix}").network
            except ValueError as error:
                raise address.invalid(f"{text[:60]!r} is no address") from error
            if family == "ipv4":
                found["net"] = str(network)
            else:
                found |= {"ipv6-prefix": str(network.network_address), "ipv6-prefixlen": network.prefixlen}
        return found

    def _socket(self, kind: str, netdev: str, source: Element | None) -> Option:
        if source is None:
            raise self._element.invalid("element source is missing")
        host, port = source.attribute("address") or "", source.get_attribute("port")
        where = f"{host}:{source.number(port)}"
        extra: dict[str, object] = {}
        if kind == "udp":
            local = source.get_child("local")
            extra["localaddr"] = f"{local.get_attribute('address')}:{local.number(local.get_attribute('port'))}"
            local.finish()
        source.finish()
        key = {"server": "listen", "client": "connect", "udp": "udp", "mcast": "mcast"}[kind]
        with self._element.located():
            return of_json("netdev", {"type": "socket", key: where, **extra, "id": netdev})

    def _accept_host_side(self) -> None:
        """Take what only the host does and that is not done here."""
        link = self._element.child("link")
        if link is not None:
            link.choice("state", {"up": None})
            link.finish()
