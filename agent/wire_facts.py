"""What a source tells of itself and its guest, protobuf to the agent's own types and back."""

from __future__ import annotations

from agent import wire_disks
from agent.migration.order import CpuWord, HostIdentity, SourceFacts
from agent.vm.bridges import CardMtu
from ferry.agent.v1 import migration_pb2
from ferry.common.v1 import migration_pb2 as common_pb2


def source_facts(message: migration_pb2.SourceFacts) -> SourceFacts:
    """Decode what the source tells of itself."""
    return SourceFacts(
        host=HostIdentity(
            name=message.host.name,
            boot_id=message.host.boot_id,
            network_namespace_inode=message.host.network_namespace_inode,
            cpu_has_aes=message.host.cpu_has_aes,
        ),
        qemu_version=message.qemu_version,
        machine=message.machine,
        cpu_words=tuple(CpuWord(word.eax, word.ecx, word.register, word.features) for word in message.cpu_feature_words),
        disk_markers=tuple(wire_disks.marker(marker) for marker in message.disk_markers),
        cpu_shares=message.cpu_shares if message.HasField("cpu_shares") else None,
        cgroup_version=message.cgroup_version,
        known=frozenset(message.known),
        stored=message.stored,
        disks=tuple(wire_disks.disk_facts(disk) for disk in message.disks),
        files=tuple(wire_disks.file_proof(file) for file in message.files),
        beside_markers=tuple(wire_disks.marker(marker) for marker in message.beside_markers),
        card_mtus=tuple(CardMtu(card.netdev, card.mtu) for card in message.card_mtus),
    )


def source_facts_message(facts: SourceFacts) -> migration_pb2.SourceFacts:
    """Encode what the source tells of itself."""
    return migration_pb2.SourceFacts(
        host=identity(facts.host),
        qemu_version=facts.qemu_version,
        machine=facts.machine,
        cpu_feature_words=[
            migration_pb2.CpuFeatureWord(eax=word.eax, ecx=word.ecx, register=word.register, features=word.features)
            for word in facts.cpu_words
        ],
        disk_markers=[wire_disks.marker_message(marker) for marker in facts.disk_markers],
        cpu_shares=facts.cpu_shares,
        cgroup_version=facts.cgroup_version,
        known=sorted(facts.known),
        stored=facts.stored,
        disks=[wire_disks.disk_facts_message(disk) for disk in facts.disks],
        files=[wire_disks.file_proof_message(file) for file in facts.files],
        beside_markers=[wire_disks.marker_message(marker) for marker in facts.beside_markers],
        card_mtus=[migration_pb2.CardMtu(netdev=card.netdev, mtu=card.mtu) for card in facts.card_mtus],
    )


def identity(host: HostIdentity) -> common_pb2.HostIdentity:
    """Encode what a host is."""
    return common_pb2.HostIdentity(
        name=host.name,
        boot_id=host.boot_id,
        network_namespace_inode=host.network_namespace_inode,
        cpu_has_aes=host.cpu_has_aes,
    )
