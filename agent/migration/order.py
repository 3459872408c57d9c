"""What is wished of a migration, and what the two agents tell each other about it.

Each type refuses in `__post_init__` what can never be, so that nobody has to look again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from agent.migration.budget import Budget, TimeoutAction
from agent.migration.disk_wishes import DiskWishes
from agent.migration.means import Compression, Means, refuse_conflicts
from agent.migration.modes import Modes
from agent.migration.post_copy import PostCopy
from agent.vm.bridges import CardMtu
from agent.vm.fingerprint import Fingerprint
from common.errors import InvalidRequest

MAX_CHANNEL_COUNT: Final = 255
MAX_DOWNTIME_S: Final = 2000.0
DEFAULT_DOWNTIME_S: Final = 0.3
OFFLINE_URI: Final = "offline:"
_KEY_LENGTH = 64


class Transport(Enum):
    """The way of guest memory."""

    DIRECT = "direct"
    TUNNEL = "tunnel"


class Role(Enum):
    """Which half of a migration."""

    SOURCE = "source"
    DESTINATION = "destination"


@dataclass(frozen=True, slots=True)
class Options:
    """What the user wishes.

    Attributes:
        multifd_channel_count: 0 is without multifd.
        bandwidth_bytes_per_second: 0 is without a bound.
        pause: stop the vCPUs for the whole transfer.
        destination_name: empty keeps the name.
        migrate_uri: empty lets the destination choose.
        force: go on where Ferry cannot prove that it is safe.
        means: how memory is sent.
        post_copy: whether and how the guest may go before its memory.
        budget: how eager it is to end, and what happens when it does not.
        modes: how the guest ends up, and what each host keeps of it.
        disks: which disks are copied, and how.
    """

    transport: Transport = Transport.DIRECT
    plain: bool = False
    multifd_channel_count: int = 0
    bandwidth_bytes_per_second: int = 0
    max_downtime_s: float = DEFAULT_DOWNTIME_S
    pause: bool = False
    destination_name: str = ""
    migrate_uri: str = ""
    force: bool = False
    means: Means = field(default_factory=Means)
    post_copy: PostCopy = field(default_factory=PostCopy)
    budget: Budget = field(default_factory=Budget)
    modes: Modes = field(default_factory=Modes)
    disks: DiskWishes = field(default_factory=DiskWishes)

    def __post_init__(self) -> None:
        """Refuse values out of range and wishes that exclude each other."""
        if not 0 <= self.multifd_channel_count <= MAX_CHANNEL_COUNT:
            raise InvalidRequest(
                f"multifd: {self.multifd_channel_count} channels; 0 (off) to {MAX_CHANNEL_COUNT} are possible",
                reason="CHANNEL_COUNT_OUT_OF_RANGE",
                channel_count=self.multifd_channel_count,
            )
        if self.bandwidth_bytes_per_second < 0:
            raise InvalidRequest(
                f"bandwidth: {self.bandwidth_bytes_per_second} bytes per second; 0 (no bound) or more is wanted",
                reason="BANDWIDTH_OUT_OF_RANGE",
            )
        if not 0 < self.max_downtime_s <= MAX_DOWNTIME_S:
            raise InvalidRequest(
                f"max-downtime: {self.max_downtime_s:g} s; more than 0 and at most {MAX_DOWNTIME_S:g} s is wanted",
                reason="DOWNTIME_OUT_OF_RANGE",
            )
        if self.post_copy.is_allowed and self.multifd_channel_count:
            raise InvalidRequest(
                f"postcopy and multifd ({self.multifd_channel_count} channels): QEMU cannot do both, so one of them has to go",
                reason="OPTIONS_CONFLICT",
            )
        if self.transport is Transport.TUNNEL and self.plain:
            raise InvalidRequest(
                "plain and tunnel: the tunnel is encrypted by its own channel, so one of them has to go",
                reason="OPTIONS_CONFLICT",
            )
        if self.transport is Transport.TUNNEL and self.migrate_uri:
            raise InvalidRequest(
                f"migrate-uri {self.migrate_uri} and tunnel: a tunnelled migration has no port of its own",
                reason="OPTIONS_CONFLICT",
            )
        self._refuse_transfer_of_nothing()
        refuse_conflicts(self._wished())
        if self.budget.on_timeout is TimeoutAction.POST_COPY and not self.can_post_copy:
            raise InvalidRequest(
                "on-timeout postcopy and postcopy never exclude each other: say postcopy allowed", reason="OPTIONS_CONFLICT"
            )

    def _refuse_transfer_of_nothing(self) -> None:
        wishes = {
            "pause": self.pause,
            "tunnel": self.transport is Transport.TUNNEL,
            "plain": self.plain,
            "multifd": self.multifd_channel_count,
            "postcopy": self.post_copy.is_allowed,
            "migrate-uri": self.migrate_uri,
        }
        named = next((name for name, is_wished in wishes.items() if is_wished), "")
        if self.modes.offline and self.disks.copies_by_wish:
            raise InvalidRequest(
                "disks and offline exclude each other: disks of a stopped VM are not copied", reason="OPTIONS_CONFLICT"
            )
        if self.modes.offline and named:
            raise InvalidRequest(f"{named} and offline exclude each other: offline sends no memory", reason="OPTIONS_CONFLICT")

    def _wished(self) -> frozenset[str]:
        wishes = {
            **dict.fromkeys(self.means.capabilities(), True),
            "auto-converge": self.budget.may_throttle or self.means.auto_converge is not None,
            "multifd": self.multifd_channel_count > 0,
            "compression": self.means.compression is not Compression.NONE,
            "tls": self.is_psk,
            "tunnel": self.transport is Transport.TUNNEL,
        }
        return frozenset(name for name, is_wished in wishes.items() if is_wished)

    def paused(self) -> Options:
        """Return the same wishes, with the guest stopped for the transfer."""
        return replace(self, pause=True)

    @property
    def can_post_copy(self) -> bool:
        """Whether the guest may go on at the destination before all of it is there."""
        return self.post_copy.is_allowed

    @property
    def channel_count(self) -> int:
        """How many connections QEMU makes: the main one, the multifd ones, and that of post-copy's preempt."""
        return 1 + self.multifd_channel_count + self.post_copy.preempt

    @property
    def is_psk(self) -> bool:
        """Whether QEMU itself encrypts, with a one-time key."""
        return self.transport is Transport.DIRECT and not self.plain


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """The running kernel and network of a host.

    Source: random(4), boot_id; namespaces(7).
    """

    name: str
    boot_id: str
    network_namespace_inode: int
    cpu_has_aes: bool

    def is_same_network(self, other: HostIdentity) -> bool:
        """Say whether a loopback address means the same on both."""
        return (self.boot_id, self.network_namespace_inode) == (other.boot_id, other.network_namespace_inode)


@dataclass(frozen=True, slots=True)
class CpuWord:
    """32 feature bits of the CPU that the guest sees. Source: qapi/machine.json, X86CPUFeatureWordInfo."""

    eax: int
    ecx: int
    register: str
    features: int


@dataclass(frozen=True, slots=True)
class DiskMarker:
    """A file beside an image; reading it on the other host proves that both see one directory.

    A block device has none; `device_number` is its number in the kernel, which names it on the same boot of one host only.

    Attributes:
        image_path: on the destination.
        marker_path: on the source; empty without a marker.
        nonce: what is in it; empty where the source could leave none.
        device_number: of a block device; 0 for a file.
        source_path: of the image on the source.
        inode: of the image on the source; 0 where it is not known.
    """

    disk: str
    image_path: str
    marker_path: str
    nonce: str
    device_number: int = 0
    source_path: str = ""
    inode: int = 0


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """A disk of the guest, as far as a copy of it has to be like it.

    Attributes:
        path: of the image on the destination; empty where it is no file.
        allocated_bytes: what a full copy takes on storage; `top_bytes`: what the top image alone does.
        create_options: further options of the format, `name=value` each. Source: qemu-img(1), -o.
        data_path: of an external data file on the destination; empty without one.
        backing_path, backing_format: of the image that it stands on; empty without one.
        backing_marker: proves that the destination sees that image.
        snapshots, bitmaps: names of snapshots and of persistent dirty bitmaps inside of the images, which a copy has not.
        obstacle: why it cannot be copied, in a clause; empty when it can.
    """

    disk: str
    path: str
    format: str = ""
    virtual_size_bytes: int = 0
    allocated_bytes: int = 0
    top_bytes: int = 0
    create_options: tuple[str, ...] = ()
    data_path: str = ""
    backing_path: str = ""
    backing_format: str = ""
    backing_marker: DiskMarker | None = None
    snapshots: tuple[str, ...] = ()
    bitmaps: tuple[str, ...] = ()
    obstacle: str = ""


@dataclass(frozen=True, slots=True)
class FileProof:
    """What tells a file that does not go along with the guest from another one.

    Attributes:
        what: its use, as `disk vda` or `kernel`.
        index: of a disk's files: 0 is the image itself, the others are what it stands on.
        path: on the source.
        fingerprint: None where there is none to take: of an image that the guest writes to.
        obstacle: why there is none though there should be, in a clause.
    """

    what: str
    index: int
    path: str
    fingerprint: Fingerprint | None = None
    obstacle: str = ""


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What the destination has to know of the source.

    Attributes:
        cpu_shares: of the guest, as the source's kernel has them; None without.
        cgroup_version: the interface that they are of, `v1` or `v2`; empty without.
        known: what its QEMU can do in a migration; see `agent.migration.means_check`.
        stored: what the source keeps of the VM while it does not run, see `agent.vm.stored`; empty of a transient one.
        disks: the guest's disks.
        files: what tells the files apart that do not go along with it.
        beside_markers: markers of what belongs to images and is not in their first file, with the paths on the source.
        card_mtus: of the bridges and devices that the guest's network cards are on.
    """

    host: HostIdentity
    qemu_version: str
    machine: str
    cpu_words: tuple[CpuWord, ...]
    disk_markers: tuple[DiskMarker, ...]
    cpu_shares: int | None = None
    cgroup_version: str = ""
    known: frozenset[str] = frozenset()
    stored: bytes = b""
    disks: tuple[DiskFacts, ...] = ()
    files: tuple[FileProof, ...] = ()
    beside_markers: tuple[DiskMarker, ...] = ()
    card_mtus: tuple[CardMtu, ...] = ()


@dataclass(frozen=True, slots=True)
class DiskCopy:
    """A disk that is copied, and how far it is.

    Attributes:
        disk: its name, which is also that of the NBD export.
        path: of its image on the destination.
        is_new: whether that image was empty at first.
        total_bytes: to be copied, as far as known; grows with what the guest writes.
        is_ready: whether both sides are equal, each write of the guest going to both.
    """

    disk: str
    path: str
    virtual_size_bytes: int
    is_new: bool
    total_bytes: int = 0
    copied_bytes: int = 0
    is_ready: bool = False


@dataclass(frozen=True, slots=True)
class DiskEndpoint:
    """Where the source copies disks to; holds a secret, so it is never written down.

    Attributes:
        uri: direct: `tcp:host:port`; empty for a tunnel.
    """

    copies: tuple[DiskCopy, ...]
    uri: str = ""
    tunnel_token: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no endpoint at all."""
        if not self.copies or bool(self.uri) is bool(self.tunnel_token):
            raise InvalidRequest("disk endpoint: disks, and a uri or a tunnel token, are wanted", reason="ENDPOINT_INVALID")

    def __repr__(self) -> str:
        """Show no secret."""
        return f"DiskEndpoint({self.copies!r}, uri={self.uri!r})"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the source's QEMU has to connect to, and with what; holds secrets, so it is never written down.

    Attributes:
        uri: direct: `tcp:host:port`; `offline:` where nothing is sent.
        psk_key: direct and encrypted: 64 hexadecimal digits; empty means plain.
        psk_priority: GnuTLS priority string for the source; empty means QEMU's default.
        tunnel_token, tunnel_address: tunnel: session and address of the destination's ferry-tunnel.
        agreed: capabilities beside the wishes that both sides have and the destination has set.
        disks: where disks are copied to; None when none is.
    """

    uri: str = ""
    psk_key: str = ""
    psk_identity: str = ""
    psk_priority: str = ""
    tunnel_token: str = ""
    tunnel_address: str = ""
    agreed: tuple[str, ...] = ()
    disks: DiskEndpoint | None = None

    def __post_init__(self) -> None:
        """Refuse what is no endpoint at all; QEMU and the tunnel judge the rest."""
        if bool(self.uri) is bool(self.tunnel_token):
            raise InvalidRequest("endpoint: a uri or a tunnel token is wanted, not both and not neither", reason="ENDPOINT_INVALID")
        if self.uri and not self.uri.startswith("tcp:") and self.uri != OFFLINE_URI:
            raise InvalidRequest(f"endpoint: uri {self.uri}: tcp:host:port is wanted", reason="ENDPOINT_INVALID")
        if self.psk_key and (len(self.psk_key) != _KEY_LENGTH or not all(c in "0123456789abcdef" for c in self.psk_key)):
            raise InvalidRequest(f"endpoint: the PSK key is not {_KEY_LENGTH} hexadecimal digits", reason="ENDPOINT_INVALID")

    def __repr__(self) -> str:
        """Show no secret."""
        return f"Endpoint(uri={self.uri!r}, tunnel_address={self.tunnel_address!r})"


@dataclass(frozen=True, slots=True)
class Wish:
    """What Begin asks for; `destination_xml` is domain XML of the user's own for the destination, empty without."""

    migration_id: str
    vm: str
    options: Options
    epoch: int
    destination_xml: bytes = b""


@dataclass(frozen=True, slots=True)
class Offer:
    """What Prepare is given: the guest's running definition, its source, and the digest of the resume token."""

    migration_id: str
    options: Options
    source: SourceFacts
    definition: bytes
    token_sha256: bytes
    epoch: int


@dataclass(frozen=True, slots=True)
class Begun:
    """The answer to Begin."""

    definition: bytes
    resume_token_sha256: bytes
    source: SourceFacts
