"""What has to be known of a QEMU binary before a VM is started with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from agent.guest_user import GuestUser
from agent.qemu import accelerator
from agent.qemu.binary import Binaries
from agent.vm.argv import cpu_model
from agent.vm.definition import Accelerator
from agent.vm.pinning import is_known
from common.errors import WrongState

if TYPE_CHECKING:
    from pathlib import Path

    from agent.qemu.binary import BinaryFacts
    from agent.vm.definition import Definition

_AGENTS_OWN: Final = GuestUser()


class Probes(Protocol):
    """Ways to learn about QEMU binaries."""

    async def facts(self, binary: Path) -> BinaryFacts:
        """Ask a binary what it offers."""

    async def accelerator(self, binary: Path, cpu: str) -> Accelerator:
        """Find the best accelerator that really runs a guest with this CPU model."""


class HostProbes:
    """The real ways; what was found is kept."""

    def __init__(self, cache_dir: Path, guests: GuestUser = _AGENTS_OWN) -> None:
        self._cache_dir = cache_dir
        self._guests = guests
        self._binaries = Binaries()

    async def facts(self, binary: Path) -> BinaryFacts:
        """Start the binary without a machine and ask, once for each build of it."""
        return await self._binaries.get(binary)

    async def accelerator(self, binary: Path, cpu: str) -> Accelerator:
        """Run a tiny guest, once for each build, CPU model and boot."""
        return Accelerator(await accelerator.probe(binary, cpu, self._cache_dir, prefix=self._guests.prefix))


def check_cpu_model(definition: Definition, facts: BinaryFacts) -> None:
    """Require that the binary knows the CPU model and its features.

    Raises:
        WrongState: it does not.
    """
    model = definition.cpu.model
    if model is not None and model not in facts.cpu_models:
        raise WrongState(f"CPU model {model} is unknown to this host's QEMU", reason="CPU_MODEL_UNKNOWN", model=model)
    for name in definition.cpu.properties:
        if not is_known(name, facts):
            raise WrongState(f"CPU feature {name} is unknown to this host's QEMU", reason="CPU_FEATURE_UNKNOWN", feature=name)


async def choose_accelerator(definition: Definition, binary: Path, probes: Probes) -> Accelerator:
    """Choose how the guest is run: as it already runs elsewhere, else KVM where wished and working, else TCG.

    Raises:
        WrongState: the guest runs under KVM elsewhere and KVM does not work here.
    """
    wanted = definition.accelerator
    if wanted is Accelerator.TCG or (wanted is None and not definition.prefers_kvm):
        return Accelerator.TCG
    found = await probes.accelerator(binary, cpu_model(definition, Accelerator.KVM))
    if wanted is Accelerator.KVM and found is not Accelerator.KVM:
        raise WrongState("the guest runs under KVM, and KVM does not work on this host", reason="ACCELERATOR_MISSING")
    return found
