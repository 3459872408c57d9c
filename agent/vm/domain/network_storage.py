"""`<source protocol=...>`: images that QEMU reaches over the network by itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from agent.vm import rules
from agent.vm.domain.secrets import read_secret
from agent.vm.options import Option

if TYPE_CHECKING:
    from agent.vm.domain.reader import Element

_YES_NO: Final = {"yes": True, "no": False}
_HOST: Final = re.compile(r"[A-Za-z0-9._:-]{1,255}")
# Ports that libvirt writes where the XML has none.
_PORTS: Final = {
    "ftp": 21,
    "ftps": 990,
    "gluster": 24007,
    "http": 80,
    "https": 443,
    "iscsi": 3260,
    "nbd": 10809,
    "nfs": 2049,
    "rbd": 6789,
    "ssh": 22,
}
_WEB: Final = ("http", "https", "ftp", "ftps")
_GLUSTER_DEBUG: Final = 4  # as libvirt sets it


def read_network(source: Element, name: str, auth: Element | None) -> tuple[dict[str, object], list[Option]]:
    """Read a network source into the properties of its storage node, and the secrets that have to stand before it.

    Args:
        source: the element, which stays open.
        name: of the node, from which the secrets get their ids.
        auth: the `<auth>` of the disk, where it is not in the source.
    """
    protocol = source.choice("protocol", {one: one for one in _PORTS})
    if protocol is None:
        raise source.invalid("attribute protocol is missing")
    secrets: list[Option] = []
    inner = source.child("auth")
    user, secret = _read_auth(inner or auth, f"{name}-auth")
    if secret is not None:
        secrets.append(secret)
    match protocol:
        case "nbd":
            storage = _nbd(source)
        case "rbd":
            storage = _rbd(source)
        case "iscsi":
            storage = _iscsi(source)
        case "gluster":
            path = source.get_attribute("name")
            volume, _, image = path.removeprefix("/").partition("/")
            servers = _servers(source, protocol)
            storage = {"driver": "gluster", "volume": volume, "path": image, "server": servers, "debug": _GLUSTER_DEBUG}
        case "nfs":
            storage = _nfs(source)
        case "ssh":
            storage = _ssh(source)
        case _:
            storage = _web(source, protocol)
    if user is not None and secret is not None:
        storage |= _credentials(source, protocol, user, secret.get("id"))
    return storage, secrets


def _read_auth(element: Element | None, name: str) -> tuple[str | None, Option | None]:
    if element is None:
        return None, None
    user = element.get_attribute("username")
    with element.located():
        rules.check_text(user, "username")
    secret = read_secret(element, name, "ceph", "iscsi")
    element.finish()
    return user, secret


def _credentials(source: Element, protocol: str, user: str, secret: str) -> dict[str, object]:
    match protocol:
        case "rbd":
            return {"user": user, "auth-client-required": ["cephx", "none"], "key-secret": secret}
        case "iscsi":
            return {"user": user, "password-secret": secret}
        case one if one in _WEB:
            return {"username": user, "password-secret": secret}
        case _:
            raise source.not_carried(value=f"auth of protocol {protocol}")


def _servers(source: Element, protocol: str, *, is_typed: bool = True) -> list[object]:
    found: list[object] = []
    for host in source.children("host"):
        transport = host.choice("transport", {"tcp": "tcp", "unix": "unix"}) or "tcp"
        if transport == "unix":
            path = host.get_attribute("socket")
            with host.located():
                rules.check_path(path)
            found.append({"type": "unix", "path": path})
        else:
            inet: dict[str, object] = {"host": _host_of(host), "port": _port_of(host, protocol)}
            found.append({"type": "inet", **inet} if is_typed else inet)
        host.finish()
    if not found and protocol != "rbd":
        raise source.invalid("element host is missing")
    return found


def _host_of(host: Element) -> str:
    name = host.get_attribute("name").strip("[]")
    if not _HOST.fullmatch(name):
        raise host.invalid(f"host {name[:60]!r}")
    return name


def _port_of(host: Element, protocol: str) -> str:
    given = host.attribute("port")
    return str(_PORTS[protocol] if given is None else host.number(given))


def _one_server(source: Element, protocol: str) -> tuple[str, str]:
    host = source.get_child("host")
    found = _host_of(host), _port_of(host, protocol)
    host.accept("transport", "tcp")
    host.finish()
    return found


def _nbd(source: Element) -> dict[str, object]:
    export = source.attribute("name")
    source.accept("tls", "no")
    [server] = _servers(source, "nbd")[:1]
    storage: dict[str, object] = {"driver": "nbd", "server": server}
    if export is not None:
        storage["export"] = export
    reconnect = source.child("reconnect")
    if reconnect is not None:
        delay = reconnect.number_attribute("delay")
        reconnect.accept("enabled", "yes")
        reconnect.finish()
        if delay is not None:
            storage["reconnect-delay"] = delay
    return storage


def _rbd(source: Element) -> dict[str, object]:
    parts = source.get_attribute("name").split("/")
    if not 2 <= len(parts) <= 3 or not all(parts):  # noqa: PLR2004 - pool, namespace, image
        raise source.invalid("name: `pool/image` or `pool/namespace/image` is wanted")
    storage: dict[str, object] = {"driver": "rbd", "pool": parts[0], "image": parts[-1]}
    if parts[1:-1]:
        storage["namespace"] = parts[1]
    snapshot, config = source.child("snapshot"), source.child("config")
    if snapshot is not None:
        storage["snapshot"] = snapshot.get_attribute("name")
        snapshot.finish()
    if config is not None:
        path = config.get_attribute("file")
        with config.located():
            rules.check_path(path)
        storage["conf"] = path
        config.finish()
    servers = _servers(source, "rbd", is_typed=False)
    return {**storage, "server": servers} if servers else storage


def _iscsi(source: Element) -> dict[str, object]:
    target, _, lun = source.get_attribute("name").partition("/")
    host, port = _one_server(source, "iscsi")
    shown = f"[{host}]" if ":" in host else host
    storage: dict[str, object] = {
        "driver": "iscsi",
        "portal": f"{shown}:{port}",
        "target": target,
        "lun": source.number(lun or "0"),
        "transport": "tcp",
    }
    initiator = source.child("initiator")
    if initiator is not None:
        iqn = initiator.get_child("iqn")
        storage["initiator-name"] = iqn.get_attribute("name")
        iqn.finish()
        initiator.finish()
    return storage


def _nfs(source: Element) -> dict[str, object]:
    path = source.get_attribute("name")
    host, port = _one_server(source, "nfs")
    if int(port) != _PORTS["nfs"]:
        raise source.not_carried(value="a port of protocol nfs")
    storage: dict[str, object] = {"driver": "nfs", "server": {"host": host, "type": "inet"}, "path": path}
    identity = source.child("identity")
    if identity is not None:
        for name in ("user", "group"):
            text = identity.attribute(name)
            if text is not None:
                storage[name] = identity.number(text.removeprefix("+"))
        identity.finish()
    return storage


def _ssh(source: Element) -> dict[str, object]:
    path = source.get_attribute("name")
    host, port = _one_server(source, "ssh")
    storage: dict[str, object] = {"driver": "ssh", "path": path, "server": {"host": host, "port": port}}
    identity = source.child("identity")
    if identity is not None:
        storage["user"] = identity.get_attribute("username")
        identity.finish()
    return storage


def _web(source: Element, protocol: str) -> dict[str, object]:
    path, query = source.get_attribute("name"), source.attribute("query")
    host, port = _one_server(source, protocol)
    shown = f"[{host}]" if ":" in host else host
    url = f"{protocol}://{shown}:{port}/{path.removeprefix('/')}" + (f"?{query}" if query else "")
    with source.located():
        rules.check_text(url, "url")
    storage: dict[str, object] = {"driver": protocol, "url": url}
    ssl = source.child("ssl")
    if ssl is not None:
        verifies = ssl.choice("verify", _YES_NO)
        ssl.finish()
        if verifies is not None:
            storage["sslverify"] = verifies
    for tag, attribute, key in (("timeout", "seconds", "timeout"), ("readahead", "size", "readahead")):
        element = source.child(tag)
        if element is not None:
            storage[key] = element.number(element.get_attribute(attribute))
            element.finish()
    return storage
