"""`<secret>`: a password that QEMU reads from a file of the host, by the UUID or the usage that the XML names.

The file holds the value as QEMU takes it: a passphrase, a CHAP password, for Ceph the key in base64. It never stands in a
definition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import quote
from uuid import UUID

from agent.vm.options import Option, of_json

if TYPE_CHECKING:
    from agent.vm.domain.reader import Element

SECRETS: Final = "/etc/ferry/secrets"


def read_secret(parent: Element, name: str, *kinds: str) -> Option:
    """Read the `<secret>` of an element into QEMU's object of this id; a usage is the file's name with `%2F` for `/`."""
    element = parent.get_child("secret")
    element.choice("type", {kind: kind for kind in kinds})
    uuid, usage = element.attribute("uuid"), element.attribute("usage")
    element.finish()
    if (uuid is None) is (usage is None):
        raise element.invalid("one of uuid and usage is wanted")
    if uuid is not None:
        try:
            file = str(UUID(uuid))
        except ValueError as error:
            raise element.invalid(f"uuid {uuid[:60]!r}") from error
    else:
        file = quote(str(usage), safe="")
        if not file.strip("."):
            raise element.invalid(f"usage {usage!r}")
    return of_json("object", {"qom-type": "secret", "id": name, "file": f"{SECRETS}/{file}"})
