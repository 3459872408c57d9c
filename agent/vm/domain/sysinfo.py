"""`<sysinfo>` and `<os><smbios>`: what the guest's firmware says of the machine and its maker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.vm import rules
from agent.vm.options import keyval

if TYPE_CHECKING:
    from agent.vm.domain.plan import Plan
    from agent.vm.domain.reader import Element

# The type of each table, and its words in QEMU's order. Source: hw/smbios/smbios.c, libvirt's own command lines.
_TABLES: Final = {
    "bios": (0, ("vendor", "version", "date", "release")),
    "system": (1, ("manufacturer", "product", "version", "serial", "uuid", "sku", "family")),
    "baseBoard": (2, ("manufacturer", "product", "version", "serial", "asset", "location")),
    "chassis": (3, ("manufacturer", "version", "serial", "asset", "sku")),
}
_OEM_TABLE: Final = 11
_FW_CFG_PREFIX: Final = "opt/"


def read_sysinfo(domain: Element, os: Element, plan: Plan, uuid: str) -> None:
    """Read both; the tables count only where `<smbios>` asks for them."""
    smbios = os.child("smbios")
    mode = None if smbios is None else smbios.choice("mode", {"emulate": "emulate", "sysinfo": "sysinfo"})
    if smbios is not None:
        smbios.finish()
    has_tables = False
    for element in domain.children("sysinfo"):
        kind = element.choice("type", {"smbios": "smbios", "fwcfg": "fwcfg"})
        if kind == "fwcfg":
            _read_firmware_words(element, plan)
            continue
        if has_tables:
            raise element.invalid("a second sysinfo of type smbios")
        has_tables = True
        _read_tables(element, plan, uuid, are_shown=mode == "sysinfo")
    if mode == "sysinfo" and not has_tables and smbios is not None:
        raise smbios.invalid("a sysinfo of type smbios is missing")


def _read_tables(element: Element, plan: Plan, uuid: str, *, are_shown: bool) -> None:
    for tag, (number, names) in _TABLES.items():
        for table in element.children(tag):
            given = _read_entries(table, names)
            if given.get("uuid", uuid).lower() != uuid:
                raise table.invalid(f"uuid {given['uuid'][:40]}: it has to be the domain's, {uuid}")
            if given and are_shown:
                plan.head.append(keyval("smbios", {"type": number, **{name: given[name] for name in names if name in given}}))
    strings = element.child("oemStrings")
    if strings is not None:
        entries = strings.children("entry")
        values = [entry.checked_text("OEM string") for entry in entries]
        strings.finish()
        if values and are_shown:
            plan.head.append(keyval("smbios", {"type": _OEM_TABLE, "value": values}))
    element.finish()


def _read_entries(table: Element, names: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in table.children("entry"):
        name = entry.get_attribute("name")
        if name not in names:
            raise entry.attribute_not_carried("name", name)
        if name in found:
            raise entry.invalid(f"{name} is given twice")
        value = entry.checked_text(name)
        if value:
            found[name] = value
    table.finish()
    return found


def _read_firmware_words(element: Element, plan: Plan) -> None:
    for entry in element.children("entry"):
        name = entry.get_attribute("name")
        if not name.startswith(_FW_CFG_PREFIX):
            raise entry.invalid(f"name {name[:60]!r}: `{_FW_CFG_PREFIX}` has to come first")
        path = entry.attribute("file")
        value = entry.checked_text(name)
        if path is not None:
            with entry.located():
                rules.check_path(path)
        if (path is None) is not bool(value):
            raise entry.invalid("either a text or a file is wanted")
        with entry.located():
            plan.head.append(keyval("fw_cfg", {"name": name, **({"string": value} if path is None else {"file": path})}))
    element.finish()
