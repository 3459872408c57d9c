"""Whether a certificate is fit to serve with, told before a handshake fails."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from common import pki
from common.certificate import check_identity, expiry_warning
from common.errors import WrongState
from common.identity import Identity, Role
from common.pki import init_authority, issue


@pytest.fixture
def host_a(tmp_path: Path) -> Path:
    init_authority(tmp_path / "ca")
    issue(tmp_path / "ca", tmp_path / "a", "host-a", Role.AGENT, [])
    return tmp_path / "a"


def test_a_certificate_with_its_key_is_fine(host_a: Path):
    check_identity(Identity.in_directory(host_a))


@pytest.mark.parametrize("content", ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
@pytest.mark.parametrize(("name", "told"), [("cert.pem", "holds no certificate"), ("key.pem", "holds no key")])
def test_a_file_that_holds_something_else_is_named(host_a: Path, name: str, told: str, content: str):
    (host_a / name).write_text(content)

    with pytest.raises(WrongState, match=f"{name} {told}"):
        check_identity(Identity.in_directory(host_a))


def test_a_key_with_a_password_is_refused_without_asking_for_it(host_a: Path):
    key = serialization.load_pem_private_key((host_a / "key.pem").read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    (host_a / "key.pem").write_bytes(locked)

    with pytest.raises(WrongState, match=r"key\.pem holds no key without password"):
        check_identity(Identity.in_directory(host_a))


def test_a_key_of_another_certificate_is_refused(host_a: Path, tmp_path: Path):
    issue(tmp_path / "ca", tmp_path / "b", "host-b", Role.AGENT, [])
    (host_a / "key.pem").write_bytes((tmp_path / "b" / "key.pem").read_bytes())

    with pytest.raises(WrongState, match=r"key\.pem is not the key of .*cert\.pem"):
        check_identity(Identity.in_directory(host_a))


def test_an_expired_certificate_is_named_with_its_day(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(pki, "CERTIFICATE_LIFETIME", timedelta(minutes=-1))
    init_authority(tmp_path / "ca")
    issue(tmp_path / "ca", tmp_path / "a", "host-a", Role.AGENT, [])

    with pytest.raises(WrongState, match=r"cert\.pem has expired on 20.*ferry pki issue"):
        check_identity(Identity.in_directory(tmp_path / "a"))


def test_a_chain_of_certificates_is_judged_by_its_first(host_a: Path, tmp_path: Path):
    with (host_a / "cert.pem").open("ab") as file:
        file.write((tmp_path / "ca" / "ca.pem").read_bytes())

    check_identity(Identity.in_directory(host_a))


@pytest.mark.parametrize("module", ["agent.__main__", "agent.tunnel.__main__"])
def test_a_server_loads_nothing_large_that_it_does_not_use(module: str):
    program = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()

    assert not {"cryptography", "opentelemetry.exporter.otlp.proto.grpc", "opentelemetry.sdk.metrics"} & set(loaded)


def test_a_certificate_of_the_future_is_told_as_that(tmp_path: Path, monkeypatch):
    init_authority(tmp_path / "ca")
    monkeypatch.setattr(pki, "BACKDATED", timedelta(days=-2))
    issue(tmp_path / "ca", tmp_path / "a", "host-a", Role.AGENT, [])

    with pytest.raises(WrongState, match="in the future here: set this host's clock") as raised:
        check_identity(Identity.in_directory(tmp_path / "a"))
    assert raised.value.reason == "CERTIFICATE_NOT_YET_VALID"


def test_a_certificate_is_warned_of_30_days_before_it_expires(host_a: Path):
    now, path = datetime.now(UTC), host_a / "cert.pem"

    assert expiry_warning(check_identity(Identity.in_directory(host_a)), path) == ""
    assert "expires on" in expiry_warning(now + timedelta(days=29), path)
    assert "has expired on" in expiry_warning(now - timedelta(days=1), path)
