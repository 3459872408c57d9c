"""The flags of the host's CPUs."""

from __future__ import annotations

from agent.qemu.host_cpu import CPUINFO, decode_flags, has_aes


def test_only_flags_of_every_cpu_count():
    text = "processor\t: 0\nflags\t\t: fpu aes avx\n\nprocessor\t: 1\nflags\t\t: fpu aes\n"

    assert decode_flags(text) == {"fpu", "aes"}


def test_arm_calls_them_features():
    assert decode_flags("Features\t: fp asimd aes\n") == {"fp", "asimd", "aes"}


def test_a_text_without_flags_has_none():
    assert decode_flags("processor : 0\n") == frozenset()


def test_this_host_is_asked_for_real():
    assert has_aes() == (" aes " in CPUINFO.read_text(encoding="utf-8"))
