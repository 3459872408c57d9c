"""What a disk's data is: `<source>`, `<driver>` and `<backingStore>` to a chain of block nodes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.vm import rules
from agent.vm.options import Option, of_json

if TYPE_CHECKING:
    from agent.vm.domain.reader import Element

FORMATS: Final = {name: name for name in ("raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "vhdx")}
_CDROM_DEVICE: Final = re.compile(r"/dev/(cdrom|dvd|sr)[0-9]*")
# direct, no-flush and the device's write-cache. Source: QEMU's man page, -drive cache=.
_CACHES: Final = {
    "none": (True, False, "on"),
    "writeback": (False, False, "on"),
    "writethrough": (False, False, "off"),
    "directsync": (True, False, "off"),
    "unsafe": (False, True, "on"),
}
_AIOS: Final = {"threads": "threads", "native": "native", "io_uring": "io_uring"}
_MAX_DEPTH: Final = 200


@dataclass(frozen=True, slots=True)
class Image:
    """How an image is opened, apart from where it is.

    `cache` is in libvirt's words, None for QEMU's default; `write_cache` what the device tells the guest then.
    """

    format: str
    cache: str | None
    aio: str | None
    discard: str | None
    detect_zeroes: str | None
    copies_on_read: bool

    @property
    def write_cache(self) -> str | None:
        """What the device's property `write-cache` has to be."""
        return None if self.cache is None else _CACHES[self.cache][2]

    def cache_flags(self) -> dict[str, object]:
        """Write `cache` of a block node."""
        if self.cache is None:
            return {}
        direct, no_flush, _ = _CACHES[self.cache]
        return {"cache": {"direct": direct, "no-flush": no_flush}}


def read_image(driver: Element | None) -> Image:
    """Take of `<driver>` what belongs to the image; leaves the element open."""
    if driver is None:
        return Image("raw", None, None, None, None, copies_on_read=False)
    driver.accept("name", "qemu")
    image = Image(
        format=driver.choice("type", FORMATS) or "raw",
        cache=driver.choice("cache", {"default": None, **{name: name for name in _CACHES}}),
        aio=driver.choice("io", _AIOS),
        discard=driver.choice("discard", {"unmap": "unmap", "ignore": "ignore"}),
        detect_zeroes=driver.choice("detect_zeroes", {name: name for name in ("off", "on", "unmap")}),
        copies_on_read=driver.switch("copy_on_read") or False,
    )
    if image.aio == "native" and image.cache not in ("none", "directsync"):
        raise driver.invalid("io `native` needs cache `none` or `directsync`")
    return image


def read_storage(source: Element, kind: str, *, is_cdrom: bool = False) -> dict[str, object] | None:
    """Read where an image is into the properties of a storage node; None when the drive is empty.

    `kind` is the disk's `type`: file, block or network.
    """
    source.ignore("seclabel")  # labels of the host; the guest cannot tell
    source.accept("index")  # libvirt's own number
    source.accept("startupPolicy", "mandatory", "requisite", "optional")  # Ferry always wants the file
    storage: dict[str, object] | None
    if kind == "network":
        storage = _read_network(source)
    else:
        path = source.attribute("file" if kind == "file" else "dev")
        storage = None
        if path is not None:
            with source.located():
                rules.check_path(path)
            driver = "file"
            if kind == "block":
                driver = "host_cdrom" if is_cdrom and _CDROM_DEVICE.fullmatch(path) else "host_device"
            storage = {"driver": driver, "filename": path}
    source.finish()
    return storage


def _read_network(source: Element) -> dict[str, object]:
    source.choice("protocol", {"nbd": None})
    export = source.attribute("name")
    source.accept("tls", "no")
    host = source.get_child("host")
    transport = host.choice("transport", {"tcp": "tcp", "unix": "unix"}) or "tcp"
    server: dict[str, object]
    if transport == "unix":
        path = host.get_attribute("socket")
        with host.located():
            rules.check_path(path)
        server = {"type": "unix", "path": path}
    else:
        server = {"type": "inet", "host": host.get_attribute("name"), "port": host.attribute("port") or "10809"}
    host.finish()
    reconnect = source.child("reconnect")
    storage: dict[str, object] = {"driver": "nbd", "server": server}
    if export is not None:
        storage["export"] = export
    if reconnect is not None:
        delay = reconnect.number_attribute("delay")
        reconnect.accept("enabled", "yes")
        reconnect.finish()
        if delay is not None:
            storage["reconnect-delay"] = delay
    return storage


def chain(disk: Element, name: str, storage: dict[str, object], image: Image, *, is_read_only: bool) -> list[Option]:
    """Make the block nodes of a disk, the lowest first; the last is called `name`."""
    backing_nodes, backing = _read_backing(disk, name, 1)
    return [*backing_nodes, *_pair(name, storage, image, is_read_only=is_read_only, backing=backing)]


def _read_backing(element: Element, name: str, depth: int) -> tuple[list[Option], str | bool]:
    """Read the rest of a chain; its top, or True for what the image itself names, or False for none."""
    store = element.child("backingStore")
    if store is None:
        return [], True
    kind = store.choice("type", {name: name for name in ("file", "block", "network")})
    store.accept("index")
    if kind is None:
        store.finish()
        return [], False
    if depth > _MAX_DEPTH:
        raise store.invalid(f"more than {_MAX_DEPTH} images in a chain")
    format_element = store.get_child("format")
    image_format = format_element.choice("type", FORMATS)
    format_element.finish()
    storage = read_storage(store.get_child("source"), kind)
    if storage is None:
        raise store.invalid("a backing image needs a source")
    below, backing = _read_backing(store, name, depth + 1)
    store.finish()
    own = f"{name}-backing{depth}"
    image = Image(image_format or "raw", None, None, None, None, copies_on_read=False)
    return [*below, *_pair(own, storage, image, is_read_only=True, backing=backing)], own


def _pair(name: str, storage: dict[str, object], image: Image, *, is_read_only: bool, backing: str | bool) -> list[Option]:
    shared: dict[str, object] = {"read-only": is_read_only, **image.cache_flags()}
    discard = {"discard": image.discard or "unmap"}
    lower: dict[str, object] = {**storage, "node-name": f"{name}-file", **shared, **discard}
    if image.aio is not None and storage["driver"] != "nbd":
        lower["aio"] = image.aio
    upper: dict[str, object] = {"driver": image.format, "node-name": name, "file": f"{name}-file", **shared}
    if image.discard is not None:
        upper["discard"] = image.discard
    if image.detect_zeroes is not None:
        without_discard = {"unmap": "on"} if image.discard != "unmap" else {}  # QEMU refuses to unmap then
        upper["detect-zeroes"] = without_discard.get(image.detect_zeroes, image.detect_zeroes)
    if isinstance(backing, str):
        upper["backing"] = backing
    elif not backing and image.format != "raw":
        upper["backing"] = None
    return [of_json("blockdev", lower), of_json("blockdev", upper)]
