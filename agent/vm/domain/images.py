"""What a disk's data is: `<source>`, `<driver>` and `<backingStore>` to a chain of block nodes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.vm import rules
from agent.vm.domain.network_storage import read_network
from agent.vm.domain.secrets import read_secret
from agent.vm.host_files import FILE_DRIVERS
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
class Encryption:
    """How an image is encrypted: `luks` or `luks2`, by QEMU or by librbd below it, with the key in an object of this id."""

    kind: str
    key: str
    is_of_rbd: bool


@dataclass(frozen=True, slots=True)
class Storage:
    """Where an image is: the properties of its storage node, and the secrets that have to stand before it."""

    properties: dict[str, object]
    before: tuple[Option, ...] = ()
    encryption: Encryption | None = None


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


def read_storage(  # noqa: PLR0913 - what the disk around it adds
    source: Element,
    kind: str,
    name: str,
    *,
    is_cdrom: bool = False,
    auth: Element | None = None,
    encryption: Element | None = None,
) -> Storage | None:
    """Read where an image is; None when the drive is empty.

    Args:
        source: the element.
        kind: the disk's `type`: file, block or network.
        name: of the node that the image gets.
        is_cdrom: whether a device of the host is a drive for discs.
        auth: the `<auth>` of the disk, where it is not in the source.
        encryption: the `<encryption>` of the disk, where it is not in the source.
    """
    source.ignore("seclabel")  # labels of the host; the guest cannot tell
    source.accept("index")  # libvirt's own number
    source.accept("startupPolicy", "mandatory", "requisite", "optional")  # Ferry always wants the file
    before: list[Option] = []
    found = _read_encryption(source.child("encryption") or encryption, name, before)
    storage: dict[str, object] | None
    if kind == "network":
        storage, secrets = read_network(source, name, auth)
        before += secrets
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
    if storage is not None and found is not None and found.is_of_rbd:
        if storage["driver"] != "rbd":
            raise source.invalid("encryption by librbd needs protocol rbd")
        storage["encrypt"] = {"format": found.kind, "key-secret": found.key}
    return None if storage is None else Storage(storage, tuple(before), found)


def _read_encryption(element: Element | None, name: str, before: list[Option]) -> Encryption | None:
    if element is None:
        return None
    kind = element.choice("format", {"luks": "luks", "luks2": "luks2"})
    engine = element.choice("engine", {"qemu": "qemu", "librbd": "librbd"}) or "qemu"
    if kind is None or (kind == "luks2" and engine == "qemu"):
        raise element.attribute_not_carried("format", str(kind))
    secret = read_secret(element, f"{name}-key", "passphrase")
    element.finish()
    before.append(secret)
    return Encryption(kind, secret.get("id"), is_of_rbd=engine == "librbd")


def chain(disk: Element, name: str, storage: Storage, image: Image, *, is_read_only: bool) -> list[Option]:
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
    own = f"{name}-backing{depth}"
    storage = read_storage(store.get_child("source"), kind, own)
    if storage is None:
        raise store.invalid("a backing image needs a source")
    below, backing = _read_backing(store, name, depth + 1)
    store.finish()
    image = Image(image_format or "raw", None, None, None, None, copies_on_read=False)
    return [*below, *_pair(own, storage, image, is_read_only=True, backing=backing)], own


def _pair(name: str, storage: Storage, image: Image, *, is_read_only: bool, backing: str | bool) -> list[Option]:
    shared: dict[str, object] = {"read-only": is_read_only, **image.cache_flags()}
    discard = {"discard": image.discard or "unmap"}
    lower: dict[str, object] = {**storage.properties, "node-name": f"{name}-file", **shared, **discard}
    if image.aio is not None and storage.properties["driver"] in FILE_DRIVERS:
        lower["aio"] = image.aio
    upper: dict[str, object] = {"driver": image.format, "node-name": name, "file": f"{name}-file", **shared}
    encryption = storage.encryption
    if encryption is not None and not encryption.is_of_rbd:
        if image.format == "raw":
            upper |= {"driver": "luks", "key-secret": encryption.key}
        else:
            upper["encrypt"] = {"format": "luks", "key-secret": encryption.key}
    if image.discard is not None:
        upper["discard"] = image.discard
    if image.detect_zeroes is not None:
        without_discard = {"unmap": "on"} if image.discard != "unmap" else {}  # QEMU refuses to unmap then
        upper["detect-zeroes"] = without_discard.get(image.detect_zeroes, image.detect_zeroes)
    if isinstance(backing, str):
        upper["backing"] = backing
    elif not backing and image.format != "raw":
        upper["backing"] = None
    return [*storage.before, of_json("blockdev", lower), of_json("blockdev", upper)]
