"""What every session of an agent shares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent.guardian.life import Guardians
from agent.migration.migrate_uri import PortRange
from agent.migration.order import HostIdentity
from agent.migration.parts import Peers, Tunnel
from agent.migration.qemu_setup import write_key
from agent.store import Store
from agent.vm.lifecycle import Vms


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every session of an agent shares.

    Attributes:
        migration_address: address or name of this host that other hosts' QEMUs connect to.
        advertised_address: `host:port` of this agent for other agents.
        tunnel_address: `host:port` of this host's tunnel for other tunnels.
        guardians: how moves from here are guarded while this agent is away.
    """

    identity: HostIdentity
    vms: Vms
    store: Store
    peers: Peers
    tunnel: Tunnel
    pool: PortRange
    migration_address: str
    advertised_address: str
    tunnel_address: str
    guardians: Guardians

    def write_key(self, migration_id: str, key: str) -> Path:
        """Put the one-time key of a migration where this host's QEMU reads it; return the directory."""
        directory = self.key_directory(migration_id)
        write_key(directory, key)
        self.store.guests.own(directory, *directory.iterdir())
        return directory

    def key_directory(self, migration_id: str) -> Path:
        """Where the one-time key of a migration lies while it is needed."""
        return self.store.keys_dir / migration_id
