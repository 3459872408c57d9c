"""What the rounds of a run came to, as the tables of docs/chaos.md: `python -m tests.chaos.report results.jsonl...`."""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

Round: TypeAlias = dict[str, Any]


def tables(rounds: Iterable[Round]) -> Iterator[str]:
    """Give the lines of the tables: by move, by what was hit, by where it was hit; how moves ended; what was found."""
    found = [one for one in rounds if "ending" in one]
    yield f"{len(found)} rounds, {sum(bool(one['wrong']) for one in found)} with findings."
    yield from _table("move", found, lambda one: one["case"]["kind"])
    yield from _table("QEMU", found, _versions)
    yield from _table("what was done", found, lambda one: f"{' and '.join(one['case']['victims'])}: {one['case']['fault']}")
    yield from _table("phase of the source then", found, lambda one: one["hit"][0] or "before Begin")
    endings = Counter(one["ending"]["state"] for one in found)
    yield ""
    yield "Ended as: " + ", ".join(f"{state} {count}" for state, count in endings.most_common()) + "."
    gaps_s = [one["gap_s"] for one in found if one["gap_s"] is not None]
    if len(gaps_s) > 1:
        worst_s = statistics.quantiles(gaps_s, n=100, method="inclusive")[98]
        median_s = statistics.median(gaps_s)
        yield f"The guest was silent for {median_s:.2f} s in the median, below {worst_s:.1f} s in 99 of 100 rounds."
        yield f"Its longest silence was {max(gaps_s):.1f} s."


def _versions(one: Round) -> str:
    here, there = one["case"]["versions"]
    return f"{here} -> {there}" if one["case"]["source"] == "host-a" else f"{there} -> {here}"


def _table(name: str, rounds: list[Round], key: Callable[[Round], str]) -> Iterator[str]:
    yield ""
    yield f"| {name} | rounds | moved | kept | lost, by design | findings |"
    yield "| --- | --- | --- | --- | --- | --- |"
    groups: dict[str, list[Round]] = {}
    for one in rounds:
        groups.setdefault(key(one), []).append(one)
    for title, group in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        moved = sum(one["ending"]["state"] == "succeeded" for one in group)
        lost = sum(bool(one["excuse"]) and one["was_restarted"] for one in group)
        wrong = sum(bool(one["wrong"]) for one in group)
        yield f"| {title} | {len(group)} | {moved} | {len(group) - moved - lost} | {lost} | {wrong} |"


def main(paths: list[str]) -> None:
    """Print the tables of all rounds in some files."""
    lines = (line for path in paths for line in Path(path).read_text(encoding="utf-8").splitlines())
    print("\n".join(tables(map(json.loads, lines))))


if __name__ == "__main__":
    main(sys.argv[1:])
