"""Who a process is: its role in the fleet and the certificate that proves it; making certificates is `common.pki`'s."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from common.errors import WrongState

SPIFFE_PREFIX: Final = "spiffe://ferry/"


class Role(Enum):
    """What the holder of a certificate may do."""

    COORDINATOR = "coordinator"
    AGENT = "agent"
    OPERATOR = "operator"
    VIEWER = "viewer"


@dataclass(frozen=True, slots=True)
class Identity:
    """The files that a process proves itself with and checks others by."""

    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def in_directory(cls, directory: Path) -> Identity:
        """Name the files that `issue` puts into a directory."""
        return cls(directory / "ca.pem", directory / "cert.pem", directory / "key.pem")

    def paths(self) -> tuple[Path, Path, Path]:
        """Name authority, certificate and key, as seen from anywhere."""
        return self.ca.absolute(), self.certificate.absolute(), self.key.absolute()

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Return authority, certificate and key.

        Raises:
            WrongState: one of them cannot be read.
        """
        contents = []
        for path in (self.ca, self.certificate, self.key):
            try:
                contents.append(path.read_bytes())
            except OSError as error:
                raise WrongState(
                    f"certificate file {path}: {error.strerror}; make it by `ferry pki issue`",
                    reason="CERTIFICATE_MISSING",
                    path=path,
                ) from error
        return contents[0], contents[1], contents[2]
