"""Who a caller is, is what the one SPIFFE URI of its certificate says; and for whom it acts is believed of a coordinator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from common import pki
from common.identity import Identity, Role
from common.rpc.acting import acting_for, ordered_by
from common.rpc.peer import is_host, title
from ferry.agent.v1.host_pb2 import GetHostRequest
from tests.unit.common.rpc.echo import echo, make_identity

TIMEOUT_S = 5.0
OPERATOR = "spiffe://ferry/operator/eve"


def with_names(directory: Path, *names: x509.GeneralName) -> Identity:
    """Make a certificate with names of its own choice, by the authority of the test."""
    identity = make_identity(directory, "odd", Role.VIEWER)
    authority, key = pki._load_authority(directory / "ca")
    given = x509.load_pem_x509_certificate(identity.certificate.read_bytes())
    builder = (
        x509.CertificateBuilder()
        .subject_name(given.subject)
        .issuer_name(authority.subject)
        .public_key(given.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(given.not_valid_before_utc)
        .not_valid_after(given.not_valid_after_utc)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    certificate = builder.sign(key, hashes.SHA256())
    identity.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return identity


async def seen(directory: Path, client: Identity, *, by: str = "") -> tuple[str, str]:
    """Call a server with a certificate; return who it takes the caller for, and on whose behalf."""
    found: list[tuple[str, str]] = []

    async def look(context: Any) -> None:
        found.append((title(context), ordered_by(context)))

    server = make_identity(directory, "server", Role.AGENT)
    async with echo(look, server=server, client=client, allowed=frozenset(Role)) as stub:
        with acting_for(by):
            await stub.GetHost(GetHostRequest(), timeout=TIMEOUT_S)
    return found[0]


async def role_is_refused(directory: Path, client: Identity) -> bool:
    try:
        await seen(directory, client)
    except Exception as error:  # noqa: BLE001 -- grpc's own, of which the text matters
        return "the caller's certificate says no role" in str(error)
    return False


async def test_a_uri_says_the_role(tmp_path: Path):
    assert await seen(tmp_path, with_names(tmp_path, x509.UniformResourceIdentifier(OPERATOR))) == ("operator eve", "")


@pytest.mark.parametrize(
    "names",
    [
        [x509.DNSName(OPERATOR)],
        [x509.RFC822Name("eve@example.com"), x509.DNSName(OPERATOR)],
        [x509.UniformResourceIdentifier(OPERATOR), x509.UniformResourceIdentifier("spiffe://ferry/viewer/eve")],
        [x509.UniformResourceIdentifier("spiffe://ferry/king/eve")],
        [x509.UniformResourceIdentifier("spiffe://ferry/operator/")],
        [x509.UniformResourceIdentifier("spiffe://elsewhere/operator/eve")],
    ],
)
async def test_no_other_name_says_one_nor_do_two(names: list[x509.GeneralName], tmp_path: Path):
    assert await role_is_refused(tmp_path, with_names(tmp_path, *names))


async def test_a_coordinator_says_for_whom_it_acts_and_is_believed(tmp_path: Path):
    coordinator = make_identity(tmp_path, "c", Role.COORDINATOR)

    assert await seen(tmp_path, coordinator, by="operator alice") == ("coordinator c", "operator alice")


async def test_nobody_else_is(tmp_path: Path):
    assert await seen(tmp_path, make_identity(tmp_path, "o", Role.OPERATOR), by="operator alice") == ("operator o", "")


@pytest.mark.parametrize(
    ("holder", "host", "wanted"),
    [
        ("host-a", "host-a", True),
        ("host-a", "host-a.example", True),
        ("host-a.example", "host-a", True),
        ("host-a.example", "host-a.elsewhere", False),
        ("host-b", "host-a", False),
        ("host-a", "", False),
    ],
)
def test_a_certificate_is_of_a_host_with_or_without_its_domain(holder: str, host: str, wanted: bool):  # noqa: FBT001 -- a table
    assert is_host(holder, host) is wanted
