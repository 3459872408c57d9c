"""JSON that others wrote: QEMUs, guests, hosts, files. Whatever it is, reading it ends with a value or a ValueError."""

from __future__ import annotations

import json


def parse_json(text: str | bytes) -> object:
    """Read a JSON text.

    Raises:
        ValueError: it is none, or is nested more deeply than can be read.
    """
    try:
        found: object = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return found
