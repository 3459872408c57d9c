"""What the two sides of a migration can do, looked at before anything starts, and what a migration needs of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.host_means import userfaultfd_obstacle, zero_copy_obstacle
from agent.migration.means import USUAL_LEVEL, Compression
from agent.migration.means_check import Ability, require
from agent.migration.order import Options, Role
from agent.qemu.abilities import TLS, obeys_level, query_abilities
from agent.vm.definition import Accelerator
from common.errors import InvalidRequest

if TYPE_CHECKING:
    from agent.guest_user import GuestUser
    from agent.qemu.binary import BinaryFacts
    from agent.qemu.commands import Qemu
    from agent.vm.running import Running
    from common.findings import Findings

ALWAYS: Final = ("events", "return-path", "pause-before-switchover", "late-block-activate")
_OPENS_DEVICE_SINCE: Final = 8
_KIB: Final = 1024
_NO_DIRTY_RING: Final = "it needs KVM with a dirty ring (dirty-ring-size), and the guest runs under {} without one"


def needs(options: Options) -> tuple[str, ...]:
    """Return the names of what both sides have to be able to do."""
    return (
        *ALWAYS,
        *options.post_copy.capabilities,
        *(["multifd"] if options.multifd_channel_count else []),
        *(["auto-converge"] if options.budget.may_throttle else []),
        *([TLS] if options.is_psk else []),
        *options.means.needs(),
    )


async def source_ability(qemu: Qemu, host: str, running: Running, options: Options, findings: Findings) -> Ability:
    """Ask the QEMU that runs the guest; of what takes time only what is wished for.

    Raises:
        WrongState: a wish cannot be fulfilled here, unless `findings` collects that.
        InvalidRequest: a wish makes no sense for this guest, likewise.
    """
    with findings.check():
        _check_cache(options, running)
    known = await query_abilities(
        qemu, with_compressions=options.means.compression is not Compression.NONE, with_tls=options.is_psk
    )
    problems = _source_problems(running, options)
    level, level_name = options.means.compression_level, options.means.level_parameter
    if level is not None and level_name in known and not await obeys_level(qemu, level_name, level):
        problems[level_name] = f"QEMU takes it and stays at {USUAL_LEVEL}: leave the level out"
    ability = Ability(Role.SOURCE, host, str(await qemu.query_version()), known, problems)
    for name in (*needs(options), *(() if level is None else (level_name,))):  # a level is for the source alone
        with findings.check():
            require(name, ability)
    return ability


def destination_ability(facts: BinaryFacts, host: str, guests: GuestUser) -> Ability:
    """Tell what this host's QEMU was found to be able to do."""
    fault = userfaultfd_obstacle(guests, opens_device=facts.version.major >= _OPENS_DEVICE_SINCE)
    problems = {"postcopy-ram": fault} if fault else {}
    return Ability(Role.DESTINATION, host, str(facts.version), facts.abilities, problems)


def _source_problems(running: Running, options: Options) -> dict[str, str]:
    problems = {}
    if options.means.zero_copy and running.process is not None:
        problems["zero-copy-send"] = zero_copy_obstacle(running.process.pid, running.definition.memory_kib * _KIB)
    # Ferry starts no guest with a dirty ring yet; an adopted one may have one.
    if running.accelerator is not Accelerator.KVM or not any("dirty-ring-size" in word for word in running.argv):
        problems["dirty-limit"] = _NO_DIRTY_RING.format(running.accelerator.value.upper())
    return {name: problem for name, problem in problems.items() if problem}


def _check_cache(options: Options, running: Running) -> None:
    """Refuse a cache that could never be filled; QEMU would allocate its table all the same."""
    cache_bytes, memory_bytes = options.means.xbzrle_cache_bytes, running.definition.memory_kib * _KIB
    most_bytes = 1 << (memory_bytes - 1).bit_length()
    if cache_bytes > most_bytes:
        raise InvalidRequest(
            f"xbzrle-cache: {cache_bytes} bytes; the guest has {memory_bytes}, so {most_bytes} is the most that makes sense",
            reason="OPTION_OUT_OF_RANGE",
            option="xbzrle-cache",
        )
