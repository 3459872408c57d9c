"""What a QEMU can do in a migration, asked of one that runs: of a short-lived one to learn about a binary, or of a guest's own.

Names are QEMU's: capabilities, parameters, `multifd-compression=VALUE`, and `tls-creds-psk`; see `agent.migration.means_check`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.qemu.decoding import as_list, as_mapping, as_str, get_str
from agent.qemu.errors import QemuRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.qemu.commands import Qemu

TLS: Final = "tls-creds-psk"
COMPRESSION: Final = "multifd-compression"
_TRIAL_ID: Final = "ferry-tls-trial"


async def query_abilities(qemu: Qemu, *, with_compressions: bool, with_tls: bool) -> frozenset[str]:
    """Ask a QEMU what it can do in a migration.

    The compressions are in its schema alone, which takes QEMU's main loop 30 to 60 ms; TLS is tried with an object that is
    removed again.
    """
    known = {*await qemu.query_capabilities(), *await qemu.query_parameters()}
    if with_compressions:
        schema = await qemu.monitor.execute("query-qmp-schema")
        known |= {f"{COMPRESSION}={value}" for value in decode_compressions(schema)}
    if with_tls and await _offers_tls(qemu):
        known.add(TLS)
    return frozenset(known)


async def obeys_level(qemu: Qemu, parameter: str, level: int) -> bool:
    """Say whether the level of a compression can be set; QEMU 7.2 takes it and leaves it as it was."""
    await qemu.set_parameters({parameter: level})
    return (await qemu.query_parameters()).get(parameter) == level


async def _offers_tls(qemu: Qemu) -> bool:
    """Say whether this QEMU was built with GnuTLS; one without refuses every object of it."""
    trial = {"qom-type": "tls-creds-anon", "id": _TRIAL_ID, "endpoint": "client"}
    try:
        await qemu.monitor.execute("object-add", trial)
    except QemuRefused as error:
        return "duplicate" in error.description  # of an earlier trial that was broken off
    await qemu.object_del(_TRIAL_ID)
    return True


def decode_compressions(schema: object) -> tuple[str, ...]:
    """Decode the values of parameter `multifd-compression` from the answer to `query-qmp-schema`."""
    entities = {get_str(entity, "name"): entity for entity in (as_mapping(one, "entity") for one in as_list(schema, "schema"))}
    command = as_mapping(entities.get("migrate-set-parameters"), "migrate-set-parameters")
    arguments = as_mapping(entities.get(get_str(command, "arg-type")), "arguments of migrate-set-parameters")
    members = {get_str(one, "name"): one for one in (as_mapping(m, "member") for m in as_list(arguments.get("members"), "members"))}
    return _values(entities, get_str(as_mapping(members.get(COMPRESSION), COMPRESSION), "type"))


def _values(entities: Mapping[str, Mapping[str, object]], name: str) -> tuple[str, ...]:
    return tuple(as_str(value, "value") for value in as_list(as_mapping(entities.get(name), name).get("values"), "values"))
