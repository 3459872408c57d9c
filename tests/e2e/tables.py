"""Tables of cases: `make test` runs those that cover each value, `make matrix` every combination."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import pytest

Case = tuple[object, ...]


def cases(names: tuple[str, ...], values: tuple[Sequence[object], ...], covering: Collection[Case]) -> pytest.MarkDecorator:
    """Parametrize with every combination; those that are not in `covering` are marked `matrix`."""
    every = list(itertools.product(*values))
    assert all(case in every for case in covering)
    params = [pytest.param(*case, marks=() if case in covering else pytest.mark.matrix, id=_id(case)) for case in every]
    return pytest.mark.parametrize(names, params)


def in_turn(first: Sequence[object], second: Sequence[object], *others: Sequence[object]) -> list[Case]:
    """Combine each of the first with each of the second, and these with the values of the others in turn."""
    return [
        (one, two, *(values[(row + column) % len(values)] for values in others))
        for row, one in enumerate(first)
        for column, two in enumerate(second)
    ]


def one_each(first: Sequence[object], *others: Sequence[object]) -> list[Case]:
    """Combine each of the first with one of the others, in turn."""
    return [(one, *(values[row % len(values)] for values in others)) for row, one in enumerate(first)]


def _id(case: Case) -> str:
    return "-".join("-".join(value) if isinstance(value, tuple) else str(value) for value in case if value)
