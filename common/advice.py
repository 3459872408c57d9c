"""Commands of `ferry migration` as texts advise them. Pure."""

from __future__ import annotations


def migration_command(verb: str, migration_id: str, *, host: str, is_forced: bool = False) -> str:
    """Write a command about one half of a migration; `recover` is about both, so it names no host."""
    at = "" if verb == "recover" else f" --host {host}"
    return f"ferry migration {verb} {migration_id}{at}{' --force' if is_forced else ''}"
