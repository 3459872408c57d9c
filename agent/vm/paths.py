"""Keeping paths of definitions inside the directories that the operator gave them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from agent.vm import rules
from common.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence


def confine(path: str, roots: Sequence[Path]) -> Path:
    """Resolve a path of a definition, links included, and refuse one that ends outside of all roots.

    Without roots every absolute path is fine. The file need not exist. A link that is changed later can still lead
    outside, so roots should be writable by the operator only.

    Raises:
        InvalidRequest: the path is not absolute and plain, or lies outside.
    """
    rules.check_path(path)
    return confine_found(path, roots)


def confine_found(path: str, roots: Sequence[Path]) -> Path:
    """Resolve a path that nobody wrote into a definition, such as one in an image's header; else as `confine`.

    Raises:
        InvalidRequest: it lies outside.
    """
    resolved = Path(os.path.realpath(path))
    if roots and not any(resolved.is_relative_to(os.path.realpath(root)) for root in roots):
        raise InvalidRequest(
            f"path {path}: outside of the configured directories ({', '.join(str(root) for root in roots)})",
            reason="PATH_OUTSIDE_ROOTS",
            path=path,
        )
    return resolved
