"""Block nodes that stand inside of another one's option, as people write them; adopted VMs have them. Pure.

-blockdev {"driver": "qcow2", "node-name": "b", "file": {"driver": "file", "filename": "/srv/b"}}
-blockdev driver=qcow2,node-name=b,file.driver=file,file.filename=/srv/b
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.vm.options import Option

_FILE: Final = "file"


def inner_file(option: Option) -> Mapping[str, object]:
    """Return the properties of the node that a block node has as its `file`; empty where that is a node of its own, or none."""
    inner = option.properties.get(_FILE)
    if isinstance(inner, dict):
        return inner
    prefix = f"{_FILE}."
    return {key.removeprefix(prefix): value for key, value in option.properties.items() if key.startswith(prefix)}


def with_inner_file(option: Option, **changes: object) -> Option:
    """Return the option with other properties of its inner `file`."""
    inner = option.properties.get(_FILE)
    if isinstance(inner, dict):
        return replace(option, properties={**option.properties, _FILE: {**inner, **changes}})
    return replace(option, properties={**option.properties, **{f"{_FILE}.{key}": value for key, value in changes.items()}})
