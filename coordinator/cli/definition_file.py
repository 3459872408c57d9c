"""Definitions that users give as files."""

from __future__ import annotations

import sys
from pathlib import Path

from common.errors import InvalidRequest

MAX_DEFINITION_BYTES = 1024 * 1024


def read_definition(file: str) -> bytes:
    """Read a definition from a file, or from stdin for `-`.

    Raises:
        InvalidRequest: it cannot be read or is larger than an agent takes.
    """
    try:
        if file == "-":
            xml = sys.stdin.buffer.read(MAX_DEFINITION_BYTES + 1)
        else:
            with Path(file).open("rb") as opened:
                xml = opened.read(MAX_DEFINITION_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(f"{file}: {error.strerror}", reason="FILE_UNREADABLE", file=file) from error
    if len(xml) > MAX_DEFINITION_BYTES:
        raise InvalidRequest(f"{file}: a definition has at most 1 MiB", reason="DEFINITION_TOO_LARGE", file=file)
    return xml
