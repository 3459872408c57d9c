"""A definition that would put an older image back under a disk: told before it is stored. Blocks for a moment.

Block jobs and moves change which image a disk stands on, and definitions follow. An XML that was kept from before still names the
old one, and the next start would go on with the data of back then.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from agent.vm.disk_images import disk_images
from common.errors import WrongState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.vm.definition import Definition


def check_images(wanted: Definition, in_use: Iterable[Definition]) -> None:
    """Require of each disk that is written to that a new definition has it on an image that it is on now.

    An image that is not there any more is no reason: nothing of it can be lost.

    Args:
        wanted: what is to be stored.
        in_use: what the VM runs as, and what is stored of it.

    Raises:
        WrongState: a disk would change its image; the text names both.
    """
    known: dict[str, list[str]] = {}
    for definition in in_use:
        for image in disk_images(definition):
            if image.path and not image.is_read_only and os.path.lexists(image.path):
                known.setdefault(image.disk, []).append(image.path)
    found = [
        f"disk {image.disk} is on {_dated(known[image.disk][0])}, the new definition names {_dated(image.path)}"
        for image in disk_images(wanted)
        if image.disk in known and not any(_is_same(image.path, path) for path in known[image.disk])
    ]
    if found:
        raise WrongState(
            f"VM {wanted.name}: {'; '.join(found)}: its next start would go on with another image's data; put the image that is in "
            "use into the XML (ferry vm show names it), or define it with --force if the other one is meant",
            reason="IMAGE_REPLACED",
            vm=wanted.name,
        )


def _is_same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _dated(path: str) -> str:
    """Name an image with the time of its last change, which tells people which one is older."""
    try:
        changed = datetime.fromtimestamp(os.stat(path).st_mtime, UTC)  # noqa: PTH116 -- a string
    except OSError:
        return f"{path or 'no file'} (not on this host)" if path else "no file of the host"
    return f"{path} (last written {changed:%Y-%m-%d %H:%M:%S} UTC)"
