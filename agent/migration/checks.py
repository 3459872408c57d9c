"""What is looked at before a migration starts: the guest at the source, the host at the destination."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from agent.migration.order import CpuWord, SourceFacts
from agent.qemu.commands import Qemu
from agent.qemu.machine import FeatureWord
from agent.vm.definition import Definition
from common.errors import WrongState

# HT and CMP_LEGACY follow from the number of cores: the guest sees them alike, QEMU tells them since 10.0 only.
# Source: target/i386/cpu.c, cpu_x86_cpuid() of 7.2 and x86_cpu_expand_features() of 10.0.
_TOPOLOGY_BITS: Final[Mapping[FeatureWord, int]] = {(0x1, 0, "EDX"): 1 << 28, (0x80000001, 0, "ECX"): 1 << 1}


async def guest_cpu(qemu: Qemu) -> tuple[CpuWord, ...]:
    """Return the CPU features that the guest has."""
    return cpu_words(await qemu.feature_words())


def cpu_words(words: Mapping[FeatureWord, int]) -> tuple[CpuWord, ...]:
    """Return feature words in a stable order, those without a feature left out."""
    kept = {word: bits & ~_TOPOLOGY_BITS.get(word, 0) for word, bits in words.items()}
    return tuple(CpuWord(eax, ecx, register, bits) for (eax, ecx, register), bits in sorted(kept.items()) if bits)


def check_cpu(source: SourceFacts, here: tuple[CpuWord, ...], definition: Definition) -> None:
    """Refuse a CPU that differs: QEMU itself does not notice, and the guest dies.

    Raises:
        WrongState: features are missing or added here.
    """
    wanted = {(word.eax, word.ecx, word.register): word.features for word in source.cpu_words}
    found = {(word.eax, word.ecx, word.register): word.features for word in here}
    if wanted == found:
        return
    key = next(key for key in sorted({*wanted, *found}) if wanted.get(key, 0) != found.get(key, 0))
    missing = wanted.get(key, 0) & ~found.get(key, 0)
    added = found.get(key, 0) & ~wanted.get(key, 0)
    model = definition.cpu.name
    raise WrongState(
        f"CPU {model}: the guest's CPU on {source.host.name} and the one that this host would give it differ "
        f"(CPUID leaf {key[0]:#x}, sub-leaf {key[1]}, {key[2]}: missing here {missing:#010x}, added here {added:#010x}); "
        "choose a CPU model that both hosts and both QEMUs give alike",
        reason="CPU_DIFFERS",
        leaf=key[0],
        register=key[2],
        missing=missing,
        added=added,
    )


def rename(definition: Definition, name: str) -> Definition:
    """Return the definition under another name; an empty one changes nothing."""
    return replace(definition, name=name) if name else definition
