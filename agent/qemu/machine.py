"""What a QEMU says about its version, machine types and CPUs. Pure decoding.

Source: qapi/control.json, qapi/machine.json, qapi/machine-target.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from agent.qemu.decoding import as_list, as_mapping, as_str, find_bool, find_str, get_bool, get_int, get_str

if TYPE_CHECKING:
    from collections.abc import Mapping

_CPUID_REGISTERS = frozenset({"EAX", "EBX", "ECX", "EDX", "ESP", "EBP", "ESI", "EDI"})

FeatureWord = tuple[int, int, str]
"""(eax, ecx, register) of a CPUID leaf; ecx is 0 where the leaf has no sub-leaves."""


@dataclass(frozen=True, slots=True, order=True)
class QemuVersion:
    """A version of QEMU; `package` is the distribution's, for people only."""

    major: int
    minor: int
    micro: int
    package: str

    def __str__(self) -> str:
        """Render the version as QEMU does, without the package."""
        return f"{self.major}.{self.minor}.{self.micro}"


@dataclass(frozen=True, slots=True)
class MachineType:
    """A machine type, by its versioned name where it has one.

    Attributes:
        alias: another name for it, such as `q35` for `pc-q35-7.2`.
        default_cpu: the QOM type of its default CPU, such as `qemu64-x86_64-cpu`.
    """

    name: str
    alias: str | None
    cpu_max_count: int
    default_cpu: str | None
    is_deprecated: bool
    is_default: bool


@dataclass(frozen=True, slots=True)
class CpuModel:
    """A CPU model under the accelerator that QEMU was started with.

    Attributes:
        unavailable_features: what the model wants and this host or accelerator lacks.
        is_migration_safe: False for `host` and `max`, which differ from host to host.
        alias_of: the versioned name under the machine type that was asked; needs a machine other than `none`.
    """

    name: str
    unavailable_features: tuple[str, ...]
    is_migration_safe: bool
    alias_of: str | None
    is_deprecated: bool


@dataclass(frozen=True, slots=True)
class MemorySize:
    """A guest's memory: what it started with, and what was plugged in later."""

    base_bytes: int
    plugged_bytes: int


@dataclass(frozen=True, slots=True)
class Chardev:
    """What stands behind a line of the guest. Source: qapi/char.json, ChardevInfo.

    Attributes:
        filename: QEMU's words for it, with `disconnected:` before a socket that has no client.
        is_frontend_open: whether the guest has opened its end.
    """

    filename: str
    is_frontend_open: bool


class Endpoint(Enum):
    """The end of a TLS connection; the migration's destination is the server."""

    SERVER = "server"
    CLIENT = "client"


def decode_version(reply: object) -> QemuVersion:
    """Decode the answer to `query-version`."""
    mapping = as_mapping(reply, "query-version")
    numbers = as_mapping(mapping.get("qemu"), "qemu")
    return QemuVersion(
        get_int(numbers, "major"),
        get_int(numbers, "minor"),
        get_int(numbers, "micro"),
        find_str(mapping, "package") or "",
    )


def decode_machines(reply: object) -> tuple[MachineType, ...]:
    """Decode the answer to `query-machines`."""
    return tuple(_machine(as_mapping(entry, "machine")) for entry in as_list(reply, "query-machines"))


def _machine(entry: Mapping[str, object]) -> MachineType:
    return MachineType(
        name=get_str(entry, "name"),
        alias=find_str(entry, "alias"),
        cpu_max_count=get_int(entry, "cpu-max"),
        default_cpu=find_str(entry, "default-cpu-type"),
        is_deprecated=find_bool(entry, "deprecated") or False,
        is_default=find_bool(entry, "is-default") or False,
    )


def decode_cpu_models(reply: object) -> tuple[CpuModel, ...]:
    """Decode the answer to `query-cpu-definitions`."""
    return tuple(_cpu_model(as_mapping(entry, "CPU model")) for entry in as_list(reply, "query-cpu-definitions"))


def _cpu_model(entry: Mapping[str, object]) -> CpuModel:
    return CpuModel(
        name=get_str(entry, "name"),
        unavailable_features=decode_names(entry.get("unavailable-features", []), "unavailable-features"),
        is_migration_safe=find_bool(entry, "migration-safe") or False,
        alias_of=find_str(entry, "alias-of"),
        is_deprecated=find_bool(entry, "deprecated") or False,
    )


def decode_property_names(reply: object) -> tuple[str, ...]:
    """Decode the answer to `qom-list-properties`."""
    return tuple(get_str(as_mapping(entry, "property"), "name") for entry in as_list(reply, "qom-list-properties"))


def decode_names(reply: object, what: str) -> tuple[str, ...]:
    """Decode an array of strings."""
    return tuple(as_str(name, what) for name in as_list(reply, what))


def decode_first_cpu_path(reply: object) -> str:
    """Decode the QOM path of vCPU 0 from the answer to `query-cpus-fast`."""
    cpus = [as_mapping(entry, "vCPU") for entry in as_list(reply, "query-cpus-fast")]
    first = min(cpus, key=lambda cpu: get_int(cpu, "cpu-index"), default={})
    return get_str(first, "qom-path")


def decode_feature_words(reply: object) -> Mapping[FeatureWord, int]:
    """Decode the property `feature-words` of an x86 CPU; words of no feature are left out, so absent means 0."""
    words: dict[FeatureWord, int] = {}
    for entry in as_list(reply, "feature-words"):
        word = as_mapping(entry, "feature word")
        sub_leaf = get_int(word, "cpuid-input-ecx") if "cpuid-input-ecx" in word else 0
        register = get_str(word, "cpuid-register")
        bits = get_int(word, "features")
        if register in _CPUID_REGISTERS and bits:
            words[get_int(word, "cpuid-input-eax"), sub_leaf, register] = bits
    return words


def decode_memory_size(reply: object) -> MemorySize:
    """Decode the answer to `query-memory-size-summary`."""
    mapping = as_mapping(reply, "query-memory-size-summary")
    plugged = get_int(mapping, "plugged-memory") if "plugged-memory" in mapping else 0
    return MemorySize(get_int(mapping, "base-memory"), plugged)


def decode_chardevs(reply: object) -> Mapping[str, Chardev]:
    """Decode the answer to `query-chardev`, by the names of the chardevs."""
    entries = [as_mapping(entry, "chardev") for entry in as_list(reply, "query-chardev")]
    return {get_str(entry, "label"): Chardev(get_str(entry, "filename"), get_bool(entry, "frontend-open")) for entry in entries}


def decode_capabilities(reply: object) -> Mapping[str, bool]:
    """Decode the answer to `query-migrate-capabilities`."""
    entries = [as_mapping(entry, "capability") for entry in as_list(reply, "query-migrate-capabilities")]
    return {get_str(entry, "capability"): entry.get("state") is True for entry in entries}
