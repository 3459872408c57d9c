"""Certificates: who may read them, what they say."""

from __future__ import annotations

import ipaddress
import stat
from pathlib import Path

import pytest
from cryptography import x509

from common.errors import InvalidRequest, WrongState
from common.identity import Identity, Role
from common.pki import init_authority, issue


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_keys_are_for_their_owner_alone(tmp_path: Path):
    init_authority(tmp_path / "ca")
    issue(tmp_path / "ca", tmp_path / "a", "host-a", Role.AGENT, [])

    assert mode(tmp_path / "ca" / "ca-key.pem") == 0o600
    assert mode(tmp_path / "a" / "key.pem") == 0o600
    assert mode(tmp_path / "a") == 0o700


def test_a_certificate_says_role_name_and_addresses(tmp_path: Path):
    init_authority(tmp_path / "ca")

    issue(tmp_path / "ca", tmp_path / "a", "host-a", Role.AGENT, ["192.0.2.7", "[2001:db8::7]", "host-a.example"])

    certificate = x509.load_pem_x509_certificate((tmp_path / "a" / "cert.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://ferry/agent/host-a"]
    assert names.get_values_for_type(x509.DNSName) == ["host-a", "host-a.example"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("192.0.2.7"), ipaddress.ip_address("2001:db8::7")]


def test_an_authority_is_never_overwritten(tmp_path: Path):
    init_authority(tmp_path)

    with pytest.raises(WrongState, match="holds an authority already"):
        init_authority(tmp_path)


def test_issuing_without_an_authority_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(WrongState, match="ferry pki init"):
        issue(tmp_path / "ca", tmp_path / "a", "host-a", Role.AGENT, [])


@pytest.mark.parametrize("name", ["", "a b", "../x", "-a", "a/b", "x" * 64])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str):
    init_authority(tmp_path / "ca")

    with pytest.raises(InvalidRequest):
        issue(tmp_path / "ca", tmp_path / "a", name, Role.AGENT, [])


def test_a_missing_certificate_is_told_by_its_path(tmp_path: Path):
    with pytest.raises(WrongState, match=r"ca\.pem: No such file"):
        Identity.in_directory(tmp_path).read()


@pytest.fixture
def host_a(tmp_path: Path) -> Path:
    init_authority(tmp_path / "ca")
    issue(tmp_path / "ca", tmp_path / "a", "host-a", Role.AGENT, [])
    return tmp_path / "a"


def test_a_certificate_is_signed_by_its_authority(host_a: Path, tmp_path: Path):
    ca, certificate, _ = Identity.in_directory(host_a).read()

    x509.load_pem_x509_certificate(certificate).verify_directly_issued_by(x509.load_pem_x509_certificate(ca))
    assert ca == (tmp_path / "ca" / "ca.pem").read_bytes()


@pytest.mark.parametrize("host", ["", "exa mple", "bücher.example", "a" * 300, "a..example"])
def test_a_host_that_is_none_is_refused(tmp_path: Path, host: str):
    init_authority(tmp_path / "ca")

    with pytest.raises(InvalidRequest, match="neither an address nor a DNS name"):
        issue(tmp_path / "ca", tmp_path / "a", "host-a", Role.AGENT, [host])

    assert not (tmp_path / "a").exists()


def test_a_broken_authority_is_told_as_such(tmp_path: Path):
    init_authority(tmp_path / "ca")
    (tmp_path / "ca" / "ca-key.pem").write_text("not a key")

    with pytest.raises(WrongState, match="cannot be read"):
        issue(tmp_path / "ca", tmp_path / "a", "host-a", Role.AGENT, [])
