"""`ferry pki`: issuing a certificate again keeps what the one before said, or says what would be lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import WrongState
from common.identity import Role
from common.pki import find_issued, init_authority
from coordinator.cli.pki import RoleName, issue_certificate


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    init_authority(tmp_path / "ca")
    issue_certificate("host-a", role=RoleName.AGENT, address=("a.example", "192.0.2.1"), ca=tmp_path / "ca")
    return tmp_path / "ca"


def hosts(ca: Path, name: str = "host-a") -> tuple[str, ...]:
    found = find_issued(ca.parent / name)
    assert found is not None
    return found.hosts


def test_a_renewed_certificate_keeps_its_addresses(ca: Path, capsys):
    before = (ca.parent / "host-a" / "cert.pem").read_bytes()
    capsys.readouterr()

    issue_certificate("host-a", role=RoleName.AGENT, ca=ca)

    assert (ca.parent / "host-a" / "cert.pem").read_bytes() != before
    assert hosts(ca) == ("a.example", "192.0.2.1")
    said = capsys.readouterr().err
    assert "valid until 20" in said
    assert "kept from the one before" in said


def test_an_address_is_added_and_none_is_dropped_without_a_word(ca: Path):
    issue_certificate("host-a", role=RoleName.AGENT, address=("a.example", "192.0.2.1", "192.0.2.9"), ca=ca)
    assert hosts(ca) == ("a.example", "192.0.2.1", "192.0.2.9")

    with pytest.raises(WrongState, match=r"also names a\.example, 192\.0\.2\.9") as raised:
        issue_certificate("host-a", role=RoleName.AGENT, address=("192.0.2.1",), ca=ca)
    assert raised.value.reason == "ADDRESSES_DROPPED"
    issue_certificate("host-a", role=RoleName.AGENT, address=("192.0.2.1",), ca=ca, replace=True)
    assert hosts(ca) == ("192.0.2.1",)


def test_the_certificate_of_another_holder_is_not_overwritten(ca: Path):
    with pytest.raises(WrongState, match="holds the agent certificate of host-a") as raised:
        issue_certificate("me", role=RoleName.OPERATOR, ca=ca, out=ca.parent / "host-a")

    assert raised.value.reason == "CERTIFICATE_OF_OTHER"
    found = find_issued(ca.parent / "host-a")
    assert found is not None
    assert (found.name, found.role) == ("host-a", Role.AGENT)


def test_a_file_that_is_no_certificate_is_replaced(ca: Path):
    (ca.parent / "host-a" / "cert.pem").write_text("nonsense")

    issue_certificate("host-a", role=RoleName.AGENT, address=("a.example",), ca=ca)

    assert hosts(ca) == ("a.example",)
