"""Certificates: one authority a fleet, one certificate a process, with the role of its holder in it.

A certificate's SAN holds `spiffe://ferry/<role>/<name>` and the DNS names and addresses that its holder is reached at.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import InvalidRequest, WrongState
from common.identity import SPIFFE_PREFIX, Role

AUTHORITY_LIFETIME: Final = timedelta(days=3650)
CERTIFICATE_LIFETIME: Final = timedelta(days=825)
BACKDATED: Final = timedelta(minutes=5)
AUTHORITY_KEY: Final = "ca-key.pem"
MAX_DNS_NAME_LENGTH: Final = 253
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_DNS_NAME: Final = re.compile(r"(?:\*\.)?[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")


def init_authority(directory: Path) -> None:
    """Make the authority of a fleet: `ca.pem` for everybody, `ca-key.pem` for nobody but the operator.

    Raises:
        WrongState: there is one already.
    """
    if (directory / AUTHORITY_KEY).exists():
        raise WrongState(
            f"{directory / AUTHORITY_KEY} exists: this directory holds an authority already", reason="AUTHORITY_EXISTS"
        )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ferry fleet")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(directory / AUTHORITY_KEY, _key_pem(key), 0o600)
    _write(directory / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)


@dataclass(frozen=True, slots=True)
class Issued:
    """What a certificate says.

    Attributes:
        role: what its holder may do.
        name: the holder's.
        hosts: DNS names and addresses that its holder is reached at, without the name.
        ends: until when it is valid.
    """

    role: Role
    name: str
    hosts: tuple[str, ...]
    ends: datetime


def find_issued(directory: Path) -> Issued | None:
    """Read the certificate that `issue` put into a directory; None where there is none that can be read."""
    try:
        certificate = x509.load_pem_x509_certificate((directory / "cert.pem").read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return None
    holders = [uri.removeprefix(SPIFFE_PREFIX) for uri in names.get_values_for_type(x509.UniformResourceIdentifier)]
    try:
        [(role, _, name)] = [holder.partition("/") for holder in holders]
        addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
        hosts = (*names.get_values_for_type(x509.DNSName), *addresses)
        return Issued(Role(role), name, tuple(host for host in hosts if host != name), certificate.not_valid_after_utc)
    except ValueError:
        return None


def issue(authority: Path, out: Path, name: str, role: Role, hosts: list[str]) -> Issued:
    """Make `ca.pem`, `cert.pem` and `key.pem` for one process, and say what the certificate says.

    Args:
        authority: directory that `init_authority` filled.
        out: directory for the three files; files of an earlier call are replaced.
        name: the holder's name, as the host's name in the fleet.
        role: what it may do.
        hosts: DNS names and addresses that it is reached at.

    Raises:
        InvalidRequest: the name, or one of the hosts, is not one.
        WrongState: there is no authority.
    """
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"name {name!r}: 1 to 63 letters, digits, dots, dashes and underscores are wanted", reason="NAME_INVALID"
        )
    authority_certificate, authority_key = _load_authority(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"{SPIFFE_PREFIX}{role.value}/{name}")]
    names.extend(_general_name(host) for host in dict.fromkeys([name, *hosts]))
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(authority_certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + CERTIFICATE_LIFETIME)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write(out / "ca.pem", authority_certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    _write(out / "cert.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    _write(out / "key.pem", _key_pem(key), 0o600)
    return Issued(role, name, tuple(hosts), certificate.not_valid_after_utc)


def _load_authority(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((directory / AUTHORITY_KEY).read_bytes(), None)
    except OSError as error:
        raise WrongState(
            f"{error.filename}: {error.strerror}; make an authority first by `ferry pki init`", reason="AUTHORITY_MISSING"
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise WrongState(f"the authority in {directory} cannot be read: {error}", reason="AUTHORITY_BROKEN") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise WrongState(f"{directory / AUTHORITY_KEY}: an elliptic curve key is wanted", reason="AUTHORITY_BROKEN")
    return certificate, key


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    if len(host) > MAX_DNS_NAME_LENGTH or not _DNS_NAME.fullmatch(host):
        raise InvalidRequest(f"host {host[:80]!r} is neither an address nor a DNS name", reason="HOST_INVALID")
    return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _write(path: Path, content: bytes, mode: int) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
