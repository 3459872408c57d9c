"""The commands that Ferry's own texts advise, as an operator would type them. Pure."""

from __future__ import annotations

import re
import shlex

_COMMAND = re.compile(
    r"""ferry\ (?:migration|vm|block|doctor|migrate)\b
        [^;`\n]*?
        (?=\s{2,}|\s\[|[;`\n)]|[.:,](?:\s|$)|$)""",
    re.VERBOSE,
)
_ONLY_LOOKS = frozenset({"show", "ls", "watch", "events", "job"})


def commands(text: str) -> list[tuple[str, ...]]:
    """Return the commands of a text, without `ferry`, each once, in their order; what only looks is left out."""
    found: dict[tuple[str, ...], None] = {}
    for match in _COMMAND.finditer(text):
        words = tuple(shlex.split(match.group())[1:])
        if len(words) > 1 and words[1] not in _ONLY_LOOKS:
            found[words] = None
    return list(found)
