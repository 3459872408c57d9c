"""Each test of this directory runs on fakes and on real QEMUs, of every version."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.binaries import BINARIES, skip_without
from tests.contract.lab import FakeLab, Lab, RealLab

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = [pytest.param(("fake", version), id=f"fake-{version}") for version in BINARIES] + [
    pytest.param(("real", version), id=f"real-{version}", marks=pytest.mark.qemu(version)) for version in BINARIES
]


@pytest.fixture(params=KINDS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A maker of QEMUs. Its directory has a short name, as UNIX sockets want."""
    kind, version = request.param
    if kind == "real":
        skip_without(version)
    with tempfile.TemporaryDirectory(prefix="ferry-lab-") as directory:
        yield FakeLab(version, Path(directory)) if kind == "fake" else RealLab(version, Path(directory))


@pytest.fixture(params=[pytest.param(version, id=version, marks=pytest.mark.qemu(version)) for version in BINARIES])
def version(request: pytest.FixtureRequest) -> str:
    """A version of QEMU that is here."""
    version: str = request.param
    skip_without(version)
    return version


@pytest.fixture
def binary(version: str) -> Path:
    """The real QEMU of that version."""
    return BINARIES[version]
