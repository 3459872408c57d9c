"""The CPU in libvirt domain XML: `<vcpu>` and `<cpu>`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.vm.definition import DEFAULT_CPU, Cpu, CpuFeature, CpuMode, Topology

if TYPE_CHECKING:
    from agent.vm.xml_reader import Element

# libvirt's policies of a feature. QEMU starts without a missing `require`d one unless `check` asks otherwise.
_POLICIES = {"force": True, "require": True, "optional": True, "disable": False, "forbid": False}
_CHECKS = {"none": False, "partial": True, "full": True}
# The only name that differs by more than dashes. Source: libvirt, virQEMUCapsCPUFeatureTranslationTable.
_QEMU_FEATURE_NAMES = {"pclmuldq": "pclmulqdq"}


def read_vcpu_count(domain: Element) -> int:
    """Read `<vcpu>`; 1 without it. CPUs to be plugged in later are not carried."""
    element = domain.child("vcpu")
    if element is None:
        return 1
    element.accept("placement", "static")
    count = element.number(element.text())
    element.accept("current", str(count))
    element.finish()
    return count


def read_cpu(domain: Element, *, prefers_kvm: bool) -> tuple[Cpu, Topology | None]:
    """Read `<cpu>`; QEMU's default model without it."""
    element = domain.child("cpu")
    if element is None:
        return DEFAULT_CPU, None
    topology = _read_topology(element.child("topology"))
    mode_given = element.choice("mode", {mode.value: mode for mode in CpuMode})
    element.accept("match", "exact")
    is_enforced = element.choice("check", _CHECKS) or False
    is_migratable = element.switch("migratable")
    model = _read_model(element)
    features = tuple(_read_feature(feature) for feature in element.children("feature"))
    element.finish()
    mode = mode_given or CpuMode.CUSTOM
    if mode is not CpuMode.CUSTOM:
        if model is not None:
            raise element.not_carried(value=f"model {model} in mode {mode.value}")
        if mode is not CpuMode.MAXIMUM and not prefers_kvm:
            raise element.invalid(f"mode {mode.value} needs a domain of type kvm")
    elif model is None:
        if features:
            raise element.invalid("features need a model")
        return DEFAULT_CPU, topology
    with element.located():
        cpu = Cpu(mode=mode, model=model, features=features, is_enforced=is_enforced, is_migratable=is_migratable)
    return cpu, topology


def _read_model(cpu: Element) -> str | None:
    element = cpu.child("model")
    if element is None:
        return None
    element.accept("fallback", "allow", "forbid")  # QEMU never takes another model than the named one
    model = element.text()
    element.finish()
    return model or None


def _read_feature(element: Element) -> CpuFeature:
    is_on = element.choice("policy", _POLICIES)
    name = element.get_attribute("name")
    element.finish()
    with element.located():
        return CpuFeature(_QEMU_FEATURE_NAMES.get(name, name.replace("_", "-")), is_on=is_on is not False)


def _read_topology(element: Element | None) -> Topology | None:
    if element is None:
        return None
    element.accept("clusters", "1")
    with element.located():
        topology = Topology(
            socket_count=element.number(element.get_attribute("sockets")),
            die_count=element.number_attribute("dies") or 1,
            core_count=element.number(element.get_attribute("cores")),
            thread_count=element.number(element.get_attribute("threads")),
        )
    element.finish()
    return topology
