"""Fixtures of the end-to-end tests: one fleet for many tests, replaced after a test that failed."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest

from deploy.lab.fleet import HOSTS, Fleet
from deploy.lab.network import TwoHosts
from deploy.lab.places import Places
from tests.e2e.binaries import OWN, PATHS, installed, nameable
from tests.e2e.lab import Lab
from tests.e2e.qemu_state import watched

_FAILED = pytest.StashKey[bool]()


class Fleets:
    """Gives a running fleet; the same one again until it is discarded."""

    def __init__(self, places: Places | None = None, *, are_watched: bool = False) -> None:
        self._places = places
        self._are_watched = are_watched
        self._fleet: Fleet | None = None
        self._numbers = itertools.count(1)

    def get(self) -> Fleet:
        """Return the fleet, started if there is none. Its hosts have different QEMUs of their own: 7.2 and 10.0."""
        if self._fleet is None:
            directory = Path(tempfile.mkdtemp(prefix="ferry-", dir="/tmp"))
            found = [watched(str(n), path, directory) for n, path in enumerate(installed())] if self._are_watched else nameable()
            emulators = ", ".join(f'"{path}"' for path in found)
            own = {
                host: found[index if PATHS[version].exists() else 0]
                for index, (host, version) in enumerate(zip(HOSTS, OWN, strict=True))
            }
            settings = dict.fromkeys(own, f"emulators = [{emulators}]")
            fleet = Fleet(directory, qemu=own, settings=settings, places=self._places)
            try:
                self._fleet = fleet.__enter__()
            except BaseException:
                shutil.rmtree(directory)
                raise
        return self._fleet

    def discard(self) -> None:
        """End the fleet and all that it runs, and remove its directory."""
        if self._fleet is not None:
            self._fleet.stop()
            shutil.rmtree(self._fleet.directory)
            self._fleet = None

    async def lab(self, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
        """Lend the fleet to one test."""
        fleet = self.get()
        directory = fleet.directory / f"t{next(self._numbers)}"
        directory.mkdir()
        lab = Lab(fleet, directory)
        is_sound = False
        try:
            async with lab:
                yield lab
                if request.node.stash.get(_FAILED, False):
                    print(lab.log_tails())
                else:
                    await lab.tidy()
                    is_sound = True
        finally:
            if not is_sound:
                self.discard()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let fixtures know that their test failed."""
    report = yield
    if report.when == "call" and report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture(scope="session")
def _fleets() -> Iterator[Fleets]:
    fleets = Fleets()
    yield fleets
    fleets.discard()


@pytest.fixture(scope="session")
def network() -> Iterator[TwoHosts]:
    """Give two hosts in network namespaces."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with TwoHosts() as hosts:
        yield hosts


@pytest.fixture(scope="session")
def _fleets_apart(network: TwoHosts) -> Iterator[Fleets]:
    fleets = Fleets(network)
    yield fleets
    fleets.discard()


@pytest.fixture(scope="session")
def _fleets_watched() -> Iterator[Fleets]:
    fleets = Fleets(are_watched=True)
    yield fleets
    fleets.discard()


@pytest.fixture(scope="session")
def _fleets_apart_watched(network: TwoHosts) -> Iterator[Fleets]:
    fleets = Fleets(network, are_watched=True)
    yield fleets
    fleets.discard()


@pytest.fixture
async def lab(_fleets: Fleets, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """Give a fleet on the loopback; after the test nothing of it may be left."""
    async for one in _fleets.lab(request):
        yield one


@pytest.fixture
async def lab_apart(_fleets_apart: Fleets, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """Give a fleet whose hosts have a network between them; after the test nothing of it may be left."""
    async for one in _fleets_apart.lab(request):
        yield one


@pytest.fixture
async def lab_watched(_fleets_watched: Fleets, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """Give a fleet as `lab`, whose QEMUs tell a test what they have; see `qemu_state.py`."""
    async for one in _fleets_watched.lab(request):
        yield one


@pytest.fixture
async def lab_apart_watched(_fleets_apart_watched: Fleets, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """Give a fleet as `lab_apart`, whose QEMUs tell a test what they have."""
    async for one in _fleets_apart_watched.lab(request):
        yield one
