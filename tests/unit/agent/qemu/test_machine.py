"""What QEMU says about itself is decoded as it was recorded from real ones."""

from __future__ import annotations

import pytest

from agent.qemu.errors import NotUnderstood
from agent.qemu.machine import (
    decode_capabilities,
    decode_cpu_models,
    decode_feature_words,
    decode_first_cpu_path,
    decode_machines,
    decode_memory_size,
    decode_names,
    decode_version,
)
from tests import transcripts

versions = pytest.mark.parametrize("version", transcripts.VERSIONS)


def reply(version: str, name: str) -> object:
    return transcripts.load(version, name)["return"]


@versions
def test_the_version(version):
    found = decode_version(reply(version, "query-version"))

    assert str(found).startswith(f"{version}.")
    assert found.package


def test_versions_compare_by_their_numbers():
    old, new = (decode_version(reply(version, "query-version")) for version in ("7.2", "10.0"))

    assert old < new


@versions
def test_machine_types_have_versioned_names_and_aliases(version):
    machines = {machine.name: machine for machine in decode_machines(reply(version, "query-machines"))}

    assert machines[f"pc-q35-{version}"].alias == "q35"
    assert machines["pc-q35-7.2"].cpu_max_count >= 255
    assert "none" in machines


@versions
def test_cpu_models_say_whether_they_may_migrate(version):
    models = {model.name: model for model in decode_cpu_models(reply(version, "query-cpu-definitions"))}

    assert models["qemu64-v1"].is_migration_safe
    assert not models["max"].is_migration_safe


@versions
def test_feature_words_are_mapped_without_empty_ones(version):
    words = decode_feature_words(reply(version, "qom-get.feature-words"))

    assert words[1, 0, "EDX"]
    assert all(words.values())
    assert all(register.startswith("E") for _, _, register in words)


@versions
def test_the_first_cpu_and_its_missing_features(version):
    path = decode_first_cpu_path(reply(version, "query-cpus-fast"))

    assert path == "/machine/unattached/device[0]"
    assert decode_names(reply(version, "qom-get.unavailable-features"), "features") == ()


@versions
def test_capabilities_and_memory(version):
    capabilities = decode_capabilities(reply(version, "query-migrate-capabilities"))

    assert capabilities["return-path"] is False
    assert decode_memory_size(reply(version, "query-memory-size-summary")).base_bytes == (16 * 1024 + 8) * 1024


@pytest.mark.parametrize(
    ("decode", "broken"),
    [
        (decode_version, {"qemu": {"major": 7}}),
        (decode_machines, [{"name": "q35"}]),
        (decode_cpu_models, {"models": []}),
        (decode_feature_words, [{"cpuid-input-eax": True, "cpuid-register": "EAX", "features": 1}]),
        (decode_first_cpu_path, []),
        (decode_memory_size, {"base-memory": "1"}),
        (decode_capabilities, [{"state": True}]),
    ],
)
def test_a_reply_that_lacks_what_we_rely_on_is_an_error(decode, broken):
    with pytest.raises(NotUnderstood):
        decode(broken)
