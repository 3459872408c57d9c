"""The devices that a definition may have.

PCI devices carry their address; None means that `addresses.pin` has yet to choose one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from agent.vm import rules
from common.errors import InvalidRequest

# What QEMU may read random bytes from. Source: libvirt's and QEMU's documentation of rng-random.
RANDOM_SOURCES = frozenset({"/dev/random", "/dev/urandom", "/dev/hwrng"})
# COM1 to COM4. Source: hw/char/serial-isa.c, MAX_ISA_SERIAL_PORTS.
SERIAL_PORT_COUNT = 4


@dataclass(frozen=True, slots=True, order=True)
class PciAddress:
    """Where a device sits: the number of its bus, its slot and function there."""

    bus: int
    slot: int
    function: int

    def __post_init__(self) -> None:
        """Refuse what PCI has not."""
        rules.check_range(self.bus, 0, 255, "PCI bus")
        rules.check_range(self.slot, 0, 31, "PCI slot")
        rules.check_range(self.function, 0, 7, "PCI function")

    def __str__(self) -> str:
        """Write as lspci does."""
        return f"{self.bus:02x}:{self.slot:02x}.{self.function}"


class ImageFormat(Enum):
    """How an image file is to be read."""

    RAW = "raw"
    QCOW2 = "qcow2"


class CacheMode(Enum):
    """How the host caches an image, in the words of QEMU's and libvirt's `cache`."""

    NONE = "none"
    WRITEBACK = "writeback"
    WRITETHROUGH = "writethrough"
    DIRECTSYNC = "directsync"
    UNSAFE = "unsafe"


class AioMode(Enum):
    """How QEMU reads and writes an image."""

    THREADS = "threads"
    NATIVE = "native"
    IO_URING = "io_uring"


@dataclass(frozen=True, slots=True)
class Disk:
    """A virtio disk in an image file; None leaves QEMU's default."""

    target: str
    path: str
    format: ImageFormat
    cache: CacheMode | None
    aio: AioMode | None
    passes_discards: bool | None
    is_read_only: bool
    serial: str | None
    boot_index: int | None
    address: PciAddress | None

    def __post_init__(self) -> None:
        """Refuse what QEMU would refuse at start."""
        rules.check_disk_target(self.target)
        rules.check_path(self.path)
        if self.serial is not None:
            rules.check_disk_serial(self.serial)
        _check_boot_index(self.boot_index)
        if self.aio is AioMode.NATIVE and self.cache not in (CacheMode.NONE, CacheMode.DIRECTSYNC):
            raise InvalidRequest(f"disk {self.target}: io `native` needs cache `none` or `directsync`", reason="VALUE_INVALID")


class InterfaceKind(Enum):
    """What a network card is connected to."""

    USER = "user"
    TAP = "tap"
    BRIDGE = "bridge"


@dataclass(frozen=True, slots=True)
class Interface:
    """A virtio network card.

    USER is QEMU's own network, without the host's. TAP is the tap device `tap`, made when it is not there. BRIDGE is a
    tap device (`tap`, or of a name that the kernel chooses) that is put into the host's bridge `bridge`.
    """

    kind: InterfaceKind
    mac: str
    tap: str | None
    bridge: str | None
    boot_index: int | None
    address: PciAddress | None

    def __post_init__(self) -> None:
        """Refuse a kind with the wrong parts."""
        rules.check_mac(self.mac)
        for name in (self.tap, self.bridge):
            if name is not None:
                rules.check_device_name(name)
        _check_boot_index(self.boot_index)
        has_bridge = self.kind is InterfaceKind.BRIDGE
        wrong_tap = self.tap is None if self.kind is InterfaceKind.TAP else self.kind is InterfaceKind.USER and self.tap
        if wrong_tap or (self.bridge is not None) is not has_bridge:
            raise InvalidRequest(f"interface {self.mac}: wrong parts for kind {self.kind.value}", reason="VALUE_INVALID")


class ChardevKind(Enum):
    """What stands behind a serial line on the host."""

    PTY = "pty"
    FILE = "file"
    UNIX_LISTEN = "unix-listen"
    UNIX_CONNECT = "unix-connect"
    NULL = "null"


@dataclass(frozen=True, slots=True)
class Chardev:
    """The host's end of a serial line; a FILE is emptied at start unless `appends`."""

    kind: ChardevKind
    path: str | None
    appends: bool

    def __post_init__(self) -> None:
        """Refuse a kind with the wrong parts."""
        needs_path = self.kind not in (ChardevKind.PTY, ChardevKind.NULL)
        if (self.path is not None) is not needs_path:
            raise InvalidRequest(f"a {self.kind.value} line with path {self.path!r}", reason="VALUE_INVALID")
        if self.path is not None:
            rules.check_path(self.path)
        if self.appends and self.kind is not ChardevKind.FILE:
            raise InvalidRequest(f"a {self.kind.value} line cannot append", reason="VALUE_INVALID")


@dataclass(frozen=True, slots=True)
class Serial:
    """A serial port of the board: 0 is COM1."""

    port: int
    chardev: Chardev

    def __post_init__(self) -> None:
        """Refuse a port that the board has not."""
        rules.check_range(self.port, 0, SERIAL_PORT_COUNT - 1, "serial port")


@dataclass(frozen=True, slots=True)
class Console:
    """A virtio console (hvc0 and so on, in order)."""

    chardev: Chardev


@dataclass(frozen=True, slots=True)
class Rng:
    """A virtio source of random bytes; `source` None is QEMU's own generator. The rate is bytes per period, or none."""

    source: str | None
    rate_bytes: int | None
    rate_period_ms: int | None
    address: PciAddress | None

    def __post_init__(self) -> None:
        """Refuse sources that are not random, and half a rate."""
        if self.source is not None and self.source not in RANDOM_SOURCES:
            raise InvalidRequest(
                f"random source {self.source!r}: one of {', '.join(sorted(RANDOM_SOURCES))} is wanted",
                reason="VALUE_INVALID",
            )
        if (self.rate_bytes is None) is not (self.rate_period_ms is None):
            raise InvalidRequest("a rate needs bytes and period", reason="VALUE_INVALID")
        for value in (self.rate_bytes, self.rate_period_ms):
            if value is not None:
                rules.check_range(value, 1, 1 << 31, "random source rate")


@dataclass(frozen=True, slots=True)
class Balloon:
    """The virtio balloon; None leaves QEMU's default."""

    deflates_on_oom: bool | None
    reports_free_pages: bool | None
    address: PciAddress | None


def _check_boot_index(boot_index: int | None) -> None:
    if boot_index is not None:
        rules.check_range(boot_index, 1, 1 << 16, "boot order")
