"""What lies between the fake QEMUs of one test: who listens where, and relays that hold back or break."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fakes.qemu_migration import FakeMigration

FIRST_FREE_PORT = 40001


@dataclass
class FakeLink:
    """A relay from the URI that a source calls to the one its destination listens on; see `tests.fakes.relay`."""

    destination_uri: str
    source: FakeMigration | None = None
    holds_data: bool = False
    holds_answers: bool = False

    def hold_data(self) -> None:
        """Let nothing more through to the destination."""
        self.holds_data = True

    def hold_answers(self) -> None:
        """Let nothing more through to the source."""
        self.holds_answers = True

    def release(self) -> None:
        """Let everything through again."""
        self.holds_data = False
        self.holds_answers = False
        if self.source is not None:
            self.source.go_on()

    def cut(self) -> None:
        """End the connection at both ends."""
        if self.source is not None:
            self.source.break_channel("Unable to write to socket: Broken pipe")


@dataclass
class FakeNetwork:
    """Joins the fakes of one test.

    Attributes:
        listening: destinations by the URI they listen on.
        links: relays by the URI that sources call.
        black_holes: URIs where connect() hangs.
    """

    listening: dict[str, FakeMigration] = field(default_factory=dict)
    links: dict[str, FakeLink] = field(default_factory=dict)
    black_holes: set[str] = field(default_factory=set)
    _port: int = FIRST_FREE_PORT

    def link(self, source_uri: str, destination_uri: str) -> FakeLink:
        """Put a relay between two URIs."""
        link = FakeLink(destination_uri)
        self.links[source_uri] = link
        return link

    def listen(self, uri: str, destination: FakeMigration) -> str:
        """Register a destination; returns its URI with a real port."""
        if uri.startswith("tcp:") and uri.endswith(":0"):
            uri = f"{uri[:-1]}{self._port}"
            self._port += 1
        self.listening[uri] = destination
        return uri

    def call(self, uri: str, source: FakeMigration) -> tuple[FakeMigration | None, FakeLink]:
        """Find who answers a source's call, and the relay between; a direct call has one that holds nothing."""
        link = self.links.get(uri) or FakeLink(uri)
        link.source = source
        return self.listening.get(link.destination_uri), link
