"""What both QEMUs are told before a migration: capabilities, parameters, credentials. Mostly pure."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from agent.migration.abilities import ALWAYS
from agent.migration.convergence import Bounds, first_limit_s
from agent.migration.dh_params import FFDHE2048, FILE_NAME
from agent.migration.means import AutoConverge
from agent.migration.order import HostIdentity, Options
from agent.qemu.commands import Qemu
from common.errors import WrongState
from common.storage import storing

NO_BOUND_BYTES_PER_SECOND: Final = 1 << 40
CREDENTIALS_ID: Final = "ferry-migration"
PSK_IDENTITY: Final = "ferry"
AES_PRIORITY: Final = "NORMAL:-CIPHER-ALL:+AES-128-GCM:+CHACHA20-POLY1305"
# QEMU takes the capability auto-converge before a migration only, and throttles then when it finds it right. Held down to
# nothing it waits until the engine lets it. Source: migration/ram.c, mig_throttle_guest_down.
NO_THROTTLE: Final = {"cpu-throttle-initial": 1, "cpu-throttle-increment": 1, "max-cpu-throttle": 1}
_THROTTLE: Final = AutoConverge(initial=20, increment=20, most=99)
_MS: Final = 1000


def capabilities(options: Options, agreed: tuple[str, ...]) -> tuple[str, ...]:
    """Return the capabilities that this migration wants, on both sides; the rest is off."""
    return (
        *ALWAYS,
        *options.post_copy.capabilities,
        *(["multifd"] if options.multifd_channel_count else []),
        *(["auto-converge"] if options.budget.may_throttle else []),
        *options.means.capabilities(),
        *agreed,
    )


def throttle(options: Options) -> dict[str, object]:
    """Return the parameters that let QEMU throttle: those that the user wished, if any."""
    return (options.means.auto_converge or _THROTTLE).parameters()


def parameters(options: Options) -> dict[str, object]:
    """Return the parameters that both sides set. Source: qapi/migration.json, MigrateSetParameters."""
    return {
        "downtime-limit": downtime_ms(first_limit_s(bounds(options))),
        "max-bandwidth": bandwidth(options.bandwidth_bytes_per_second),
        "max-postcopy-bandwidth": options.post_copy.bandwidth_bytes_per_second,
        "multifd-channels": max(options.multifd_channel_count, 1),
        **options.means.parameters(),
        "tls-creds": CREDENTIALS_ID if options.is_psk else "",
        "tls-hostname": "",
        **(NO_THROTTLE if options.budget.may_throttle else {}),
    }


def bounds(options: Options) -> Bounds:
    """Return what the convergence engine may do."""
    return Bounds(options.budget, options.max_downtime_s, can_post_copy=options.can_post_copy)


def downtime_ms(max_downtime_s: float) -> int:
    """Return QEMU's `downtime-limit`: whole milliseconds, never more than wished and at least 1."""
    return max(1, int(max_downtime_s * _MS))


def bandwidth(bytes_per_second: int) -> int:
    """Return QEMU's `max-bandwidth`; QEMU has no word for no bound."""
    return bytes_per_second or NO_BOUND_BYTES_PER_SECOND


def psk_priority(source: HostIdentity, destination: HostIdentity) -> str:
    """Choose the cipher: AES-128-GCM where both CPUs have AES instructions, else QEMU's default."""
    return AES_PRIORITY if source.cpu_has_aes and destination.cpu_has_aes else ""


async def apply_settings(qemu: Qemu, options: Options, agreed: tuple[str, ...]) -> None:
    """Set parameters and capabilities, and read the capabilities back; `agreed` are capabilities beside the wishes.

    Raises:
        WrongState: this QEMU lacks something, or did not take it.
    """
    known = await qemu.query_capabilities()
    on = capabilities(options, agreed)
    for name in on:
        if name not in known:
            raise WrongState(f"this QEMU has no migration capability {name}", reason="CAPABILITY_MISSING", capability=name)
    wanted = {name: name in on for name in known}
    # QEMU judges parameters by the capabilities that are set, which may be those of an earlier migration.
    await qemu.set_capabilities(dict.fromkeys(known, False))
    known_parameters = await qemu.query_parameters()
    optional = {name: value for name, value in options.means.optional_parameters().items() if name in known_parameters}
    await qemu.set_parameters(parameters(options) | optional)
    await qemu.set_capabilities(wanted)
    differing = sorted(name for name, state in (await qemu.query_capabilities()).items() if wanted.get(name) is not state)
    if differing:
        raise WrongState(f"QEMU did not take capability {differing[0]}", reason="CAPABILITY_REFUSED", capability=differing[0])


def write_key(directory: Path, key: str) -> None:
    """Put the key where QEMU reads it, in a directory of its own with what a server needs; QEMU itself looks at no mode.

    Source: docs/system/tls.rst, PSK.

    Raises:
        StorageFailed: the file system refused.
    """
    path = directory / "keys.psk"
    with storing(path):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(f"{PSK_IDENTITY}:{key}\n", encoding="ascii")
        (directory / FILE_NAME).write_text(FFDHE2048, encoding="ascii")


def remove_key(directory: Path) -> None:
    """Ensure that the key is gone."""
    shutil.rmtree(directory, ignore_errors=True)
