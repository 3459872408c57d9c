"""Whether a process's certificate is fit to serve with; by Python's own TLS, since `cryptography` takes 10 MB of each process."""

from __future__ import annotations

import ssl
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from common.errors import WrongState
from common.identity import Identity

_FLIGHTS: Final = 2  # of TLS 1.3, from each side
# X509_V_FLAG_NO_CHECK_TIME, for which `ssl` has no name. Source: X509_VERIFY_PARAM_set_flags(3).
_NO_CHECK_TIME: Final = 0x200000


WARNED_BEFORE: Final = timedelta(days=30)


def expiry_warning(ends: datetime, path: Path) -> str:
    """Say that a certificate expires soon, or has; empty while it is valid for more than 30 days."""
    now = datetime.now(UTC)
    if ends < now:
        return f"certificate {path} has expired on {ends:%Y-%m-%d}: renew it by `ferry pki issue` and restart the process"
    if ends - now < WARNED_BEFORE:
        return f"certificate {path} expires on {ends:%Y-%m-%d}: renew it by `ferry pki issue` and restart the process"
    return ""


def check_identity(identity: Identity) -> datetime:
    """Find what TLS would only call a failed handshake; return until when the certificate is valid.

    Raises:
        WrongState: a file cannot be read, or certificate and key are no pair that is valid today.
    """
    identity.read()
    client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        client.load_verify_locations(identity.certificate)
    except ssl.SSLError as error:
        raise WrongState(f"certificate file {identity.certificate} holds no certificate", reason="CERTIFICATE_BROKEN") from error
    try:
        server.load_cert_chain(identity.certificate, identity.key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            text = f"key file {identity.key} is not the key of {identity.certificate}"
        else:
            text = f"key file {identity.key} holds no key without password"
        raise WrongState(text, reason="CERTIFICATE_BROKEN") from error
    try:
        begins, ends = _span_of(client, server)
    except ssl.SSLError as error:
        raise WrongState(
            f"certificate {identity.certificate} is not fit for TLS: {error.reason}", reason="CERTIFICATE_BROKEN"
        ) from error
    if ends < datetime.now(UTC):
        raise WrongState(
            f"certificate {identity.certificate} has expired on {ends:%Y-%m-%d}; make a new one by `ferry pki issue`",
            reason="CERTIFICATE_EXPIRED",
        )
    if begins > datetime.now(UTC):
        raise WrongState(
            f"certificate {identity.certificate} is valid from {begins:%Y-%m-%d %H:%M} UTC on, which is in the future here: "
            "set this host's clock, or make a new one by `ferry pki issue`",
            reason="CERTIFICATE_NOT_YET_VALID",
        )
    return ends


def _span_of(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[datetime, datetime]:
    """Return from when and until when a server's certificate is valid, by a handshake in memory: `ssl` tells it of a peer alone."""
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(_NO_CHECK_TIME)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking, asked = client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(_FLIGHTS):
        for side in (asking, asked):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    certificate = asking.getpeercert()
    if not certificate:
        raise ssl.SSLError("no certificate was shown")
    begins, ends = (ssl.cert_time_to_seconds(str(certificate[name])) for name in ("notBefore", "notAfter"))
    return datetime.fromtimestamp(begins, UTC), datetime.fromtimestamp(ends, UTC)
