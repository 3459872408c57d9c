"""`<features>`, `<pm>` and `<clock>` of libvirt domain XML: switches of the board, the CPU and the clocks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from agent.vm.domain.plan import Board
from agent.vm.options import keyval, of_json, text

if TYPE_CHECKING:
    from agent.vm.domain.plan import Plan
    from agent.vm.domain.reader import Element
    from agent.vm.options import Option

_YES_NO: Final = {"yes": True, "no": False}
_POWER_DEVICES: Final = {Board.I440FX: "PIIX4_PM", Board.Q35: "ICH9-LPC"}
# Hyper-V enlightenments that are plain switches. Source: docs/system/i386/hyperv.rst.
_HYPERV: Final = {
    **{name: f"hv-{name}" for name in ("relaxed", "vapic", "vpindex", "runtime", "synic", "stimer", "reset", "frequencies")},
    **{name: f"hv-{name}" for name in ("reenlightenment", "tlbflush", "ipi", "evmcs", "avic")},
    "emsr_bitmap": "hv-emsr-bitmap",
    "xmm_input": "hv-xmm-input",
}
_KVM_ONLY: Final = frozenset({"hv-vpindex", "hv-synic"})  # QEMU does not start with them otherwise
_KVM: Final = {"hint-dedicated": "kvm-hint-dedicated", "poll-control": "kvm-poll-control"}


def read_features(domain: Element, plan: Plan, *, prefers_kvm: bool) -> None:
    """Read `<features>`; without `<acpi/>` the guest has no ACPI, as under libvirt."""
    machine, cpu = plan.machine_properties, plan.cpu_properties
    element = domain.child("features")
    has_acpi = element is not None and element.has("acpi")
    if not has_acpi:
        machine["acpi"] = False
    if element is None:
        return
    _read_apic(element, cpu)
    element.has("pae")  # every CPU of QEMU has it
    element.has("hap")  # KVM uses it where it can
    for name in ("smm", "vmport"):
        state = _read_switch(element.child(name), "tseg")
        if state is not None:
            machine[name] = state
    pmu = _read_switch(element.child("pmu"))
    if pmu is not None:
        cpu["pmu"] = pmu
    spinlock = _read_switch(element.child("pvspinlock"))
    if spinlock is not None:
        cpu["kvm-pv-unhalt"] = spinlock
    _read_hyperv(element.child("hyperv"), cpu, prefers_kvm=prefers_kvm)
    _read_kvm(element.child("kvm"), cpu)
    ioapic = element.child("ioapic")
    if ioapic is not None:
        machine["kernel_irqchip"] = ioapic.choice("driver", {"qemu": "split", "kvm": "on"}) or "on"
        ioapic.finish()
    if _read_switch(element.child("vmcoreinfo")):
        plan.tail.append(of_json("device", {"driver": "vmcoreinfo"}))
    element.finish()


def _read_apic(features: Element, cpu: dict[str, object]) -> None:
    element = features.child("apic")  # every x86 guest has one
    if element is not None:
        eoi = element.switch("eoi")
        element.finish()
        if eoi is not None:
            cpu["kvm-pv-eoi"] = eoi


def _read_hyperv(element: Element | None, cpu: dict[str, object], *, prefers_kvm: bool) -> None:
    if element is None:
        return
    mode = element.choice("mode", {"custom": False, "passthrough": True})
    if mode:
        cpu["hv-passthrough"] = True
    _read_enlightenments(element, cpu)
    if not prefers_kvm and cpu.keys() & _KVM_ONLY:
        raise element.invalid(f"{', '.join(sorted(cpu.keys() & _KVM_ONLY))}: only for a domain of type kvm")
    spinlocks = element.child("spinlocks")
    if spinlocks is not None:
        retries = spinlocks.number_attribute("retries")
        if _read_switch(spinlocks) and retries is not None:
            cpu["hv-spinlocks"] = hex(retries)
    vendor = element.child("vendor_id")
    if vendor is not None:
        value = vendor.attribute("value")
        if _read_switch(vendor) and value is not None:
            cpu["hv-vendor-id"] = value
    element.finish()


def _read_enlightenments(element: Element, cpu: dict[str, object]) -> None:
    for name, key in _HYPERV.items():
        feature = element.child(name)
        if feature is None:
            continue
        if name == "stimer" and _read_switch(feature.child("direct")):
            cpu["hv-stimer-direct"] = True
        if _read_switch(feature):
            cpu[key] = True


def _read_kvm(element: Element | None, cpu: dict[str, object]) -> None:
    if element is None:
        return
    if _read_switch(element.child("hidden")):
        cpu["kvm"] = False
    for name, key in _KVM.items():
        if _read_switch(element.child(name)):
            cpu[key] = True
    element.finish()


def _read_switch(element: Element | None, *ignored: str) -> bool | None:
    if element is None:
        return None
    state = element.switch()
    for name in ignored:
        if element.child(name) is not None:
            raise element.not_carried(value=name)
    element.finish()
    return True if state is None else state


def read_power(domain: Element, plan: Plan) -> None:
    """Read `<pm>`: whether the guest may suspend."""
    power = domain.child("pm")
    if power is None:
        return
    for name, key in (("suspend-to-mem", "disable_s3"), ("suspend-to-disk", "disable_s4")):
        state = power.child(name)
        if state is not None:
            is_enabled = state.choice("enabled", _YES_NO)
            state.finish()
            if is_enabled is not None:
                plan.head.append(text("global", f"{_POWER_DEVICES[plan.board]}.{key}={int(not is_enabled)}"))
    power.finish()


def read_clock(domain: Element, plan: Plan) -> None:
    """Read `<clock>` and its timers."""
    element = domain.child("clock")
    rtc: dict[str, object] = {"base": "utc"}
    later = []
    if element is not None:
        rtc["base"] = _read_base(element)
        for timer in element.children("timer"):
            later += _read_timer(timer, rtc, plan)
        element.finish()
    plan.head.append(keyval("rtc", rtc))
    plan.head += later


def _read_base(element: Element) -> str:
    offset = element.choice("offset", {name: name for name in ("utc", "localtime", "absolute", "variable")}) or "utc"
    if offset == "absolute":
        start = element.number(element.get_attribute("start"))
        try:
            return datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        except (OverflowError, ValueError, OSError) as error:
            raise element.invalid(f"start {start} is no time") from error
    if offset == "variable":
        basis = element.choice("basis", {"utc": "utc", "localtime": "localtime"}) or "utc"
        adjustment = element.attribute("adjustment")
        if adjustment not in (None, "0"):
            raise element.attribute_not_carried("adjustment", adjustment)
        return basis
    element.accept("adjustment", "reset", "0")
    return offset


def _read_timer(timer: Element, rtc: dict[str, object], plan: Plan) -> list[Option]:
    name = timer.choice("name", {name: name for name in ("rtc", "pit", "hpet", "kvmclock", "hypervclock", "tsc")})
    later: list[Option] = []
    if name == "rtc":
        clock = timer.choice("track", {"guest": "vm", "wall": "host", "realtime": "rt"})
        if clock is not None:
            rtc["clock"] = clock
        drift = timer.choice("tickpolicy", {"catchup": "slew", "delay": None})  # QEMU's own way is to delay
        if drift is not None:
            rtc["driftfix"] = drift
    elif name == "pit":
        policy = timer.choice("tickpolicy", {"delay": "delay", "discard": "discard"})
        if policy is not None:
            later.append(text("global", f"kvm-pit.lost_tick_policy={policy}"))
    elif name == "tsc":
        frequency = timer.number_attribute("frequency")
        timer.accept("mode", "auto", "native")
        if frequency is not None:
            plan.cpu_properties["tsc-frequency"] = frequency
    else:
        _read_presence(timer, name, plan)
    timer.accept("present", "yes")
    timer.finish()
    return later


def _read_presence(timer: Element, name: str | None, plan: Plan) -> None:
    present = timer.choice("present", _YES_NO)
    if present is None:
        return
    if name == "hpet":
        plan.machine_properties["hpet"] = present
    elif name == "kvmclock":
        plan.cpu_properties["kvmclock"] = present
    elif present:
        plan.cpu_properties["hv-time"] = True
