"""The CPU in libvirt domain XML: `<vcpu>`, `<cpu>` and what of other elements QEMU takes as properties of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.vm.definition import Cpu, CpuMode

if TYPE_CHECKING:
    from agent.vm.domain.reader import Element

# libvirt's policies of a feature. QEMU starts without a missing `require`d one unless `check` asks otherwise.
_POLICIES: Final = {"force": True, "require": True, "optional": True, "disable": False, "forbid": False}
# `partial` compares with the host's CPU, which is no matter to a guest under TCG. Source: libvirt, formatdomain, `check`.
_CHECKS: Final = {"none": "none", "partial": "partial", "full": "full"}
# The only names that differ by more than dashes. Source: libvirt, virQEMUCapsCPUFeatureTranslationTable.
_QEMU_FEATURE_NAMES: Final = {"pclmuldq": "pclmulqdq", "sse4_1": "sse4.1", "sse4_2": "sse4.2", "tsc_adjust": "tsc-adjust"}


# What QEMU has no switch for: the guest's own doing, and measurements of the host. Source: libvirt, virQEMUCapsCPUFilterFeatures.
_SWITCHLESS: Final = frozenset({"osxsave", "ospke", "cmt", "mbm_total", "mbm_local"})


@dataclass(frozen=True, slots=True)
class Vcpus:
    """How many CPUs there are at boot and at most, and how they are arranged in the words of `-smp`."""

    count: int
    smp: dict[str, object]


def read_vcpus(domain: Element, topology: dict[str, object] | None) -> Vcpus:
    """Read `<vcpu>`; 1 without it. Which CPUs of the host they run on is not carried and does not matter to the guest."""
    element = domain.child("vcpu")
    most, count = 1, 1
    if element is not None:
        element.accept("placement", "static", "auto")
        element.accept("cpuset")
        most = element.number(element.text())
        count = element.number_attribute("current") or most
        element.finish()
        if not 1 <= count <= most:
            raise element.invalid(f"{count} of {most} CPUs")
    smp: dict[str, object] = {} if count == most else {"maxcpus": most}
    smp |= topology or {"sockets": most, "cores": 1, "threads": 1}
    product = 1
    for value in (topology or {}).values():
        product *= int(str(value))
    if topology is not None and product != most:
        raise domain.invalid(f"the CPU topology has {product} CPUs, the VM {most}")
    return Vcpus(count, smp)


def read_topology(cpu: Element | None) -> dict[str, object] | None:
    """Read `<topology>` into words of `-smp`."""
    element = None if cpu is None else cpu.child("topology")
    if element is None:
        return None
    element.accept("clusters", "1")
    numbers = {name: element.number_attribute(name) for name in ("sockets", "dies", "cores", "threads")}
    element.finish()
    for name in ("sockets", "cores", "threads"):
        if not numbers[name]:
            raise element.invalid(f"attribute {name}: a number from 1 is wanted")
    return {name: number for name, number in numbers.items() if number is not None}


def read_cpu(element: Element | None, extra: dict[str, object], *, prefers_kvm: bool) -> Cpu:
    """Read `<cpu>`, whose topology and NUMA cells were read already; QEMU's default model without it."""
    if element is None:
        return Cpu(CpuMode.CUSTOM, "qemu64", extra)
    mode = element.choice("mode", {mode.value: mode for mode in CpuMode}) or CpuMode.CUSTOM
    element.accept("match", "exact")
    check = element.choice("check", _CHECKS)
    properties: dict[str, object] = {}
    is_migratable = element.switch("migratable")
    if is_migratable is not None:
        properties["migratable"] = is_migratable
    model = _read_model(element)
    _read_cache(element, properties)
    _read_features(element, properties)
    address_bits = element.child("maxphysaddr")
    if address_bits is not None:
        _read_address_bits(address_bits, properties)
    element.finish()
    if mode is not CpuMode.CUSTOM:
        _check_mode(element, mode, model, prefers_kvm=prefers_kvm)
        model = None
    elif model is None and properties:
        raise element.invalid("features need a model")
    if model is not None and (check == "full" or (check == "partial" and prefers_kvm)):
        properties["enforce"] = True
    with element.located():
        return Cpu(mode, model or ("qemu64" if mode is CpuMode.CUSTOM else None), {**properties, **extra})


def _read_features(element: Element, properties: dict[str, object]) -> None:
    for feature in element.children("feature"):
        is_on = feature.choice("policy", _POLICIES)
        name = feature.get_attribute("name")
        feature.finish()
        if name in _SWITCHLESS:
            continue
        name = qemu_feature_name(name)
        if name in properties:
            raise feature.invalid(f"feature {name} is given twice")
        properties[name] = is_on is not False


def qemu_feature_name(name: str) -> str:
    """Give QEMU's name of a feature that libvirt names."""
    return _QEMU_FEATURE_NAMES.get(name, name.replace("_", "-"))


def _check_mode(element: Element, mode: CpuMode, model: str | None, *, prefers_kvm: bool) -> None:
    if model is not None and mode is not CpuMode.HOST_MODEL:
        raise element.not_carried(value=f"model {model} in mode {mode.value}")
    if mode is not CpuMode.MAXIMUM and not prefers_kvm:
        raise element.invalid(f"mode {mode.value} needs a domain of type kvm")


def _read_model(cpu: Element) -> str | None:
    element = cpu.child("model")
    if element is None:
        return None
    element.accept("fallback", "allow", "forbid")  # QEMU never takes another model than the named one
    model = element.text()
    element.finish()
    cpu.ignore("vendor")  # a condition on the host that `check` repeats
    return model or None


def _read_cache(cpu: Element, properties: dict[str, object]) -> None:
    element = cpu.child("cache")
    if element is None:
        return
    element.accept("level", "3")
    mode = element.choice(
        "mode", {"emulate": {"l3-cache": True}, "passthrough": {"host-cache-info": True}, "disable": {"l3-cache": False}}
    )
    element.finish()
    properties.update(mode or {})


def _read_address_bits(element: Element, properties: dict[str, object]) -> None:
    mode = element.choice("mode", {"emulate": False, "passthrough": True})
    bits = element.number_attribute("bits")
    element.finish()
    if mode:
        properties["host-phys-bits"] = True
    elif bits is not None:
        properties["phys-bits"] = bits
