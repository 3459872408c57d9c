"""The group that QEMU's TLS server is given."""

from __future__ import annotations

import base64
from decimal import Decimal, localcontext

from agent.migration.dh_params import FFDHE2048

_DIGITS = 1200
_TERMS = 500
_HEADER_BYTES = 9  # of the SEQUENCE, of the INTEGER, and its sign byte
_PRIME_BYTES = 256


def test_the_group_is_the_one_that_rfc_7919_defines():
    with localcontext() as context:
        context.prec = _DIGITS
        euler = term = Decimal(1)
        for number in range(1, _TERMS):
            term /= number
            euler += term
        fraction = int(Decimal(2) ** 1918 * euler)
    prime = 2**2048 - 2**1984 + (fraction + 560316) * 2**64 - 1

    lines = FFDHE2048.splitlines()
    content = base64.b64decode("".join(lines[1:-1]))

    assert lines[0] == "-----BEGIN DH PARAMETERS-----"
    assert int.from_bytes(content[_HEADER_BYTES : _HEADER_BYTES + _PRIME_BYTES]) == prime
    assert content[_HEADER_BYTES + _PRIME_BYTES :] == bytes((2, 1, 2))
