"""The same check refuses an operation and is collected for its plan."""

from __future__ import annotations

import json

import pytest

from common.errors import Bug, WrongState
from common.findings import Finding, Findings, Risk, Severity, warnings_of


def refuse(word: str) -> None:
    raise WrongState(f"no {word}", reason=f"NO_{word.upper()}")


def test_an_operation_is_refused_at_the_first():
    findings = Findings()

    with pytest.raises(WrongState, match="no disk"), findings.check():
        refuse("disk")


def test_a_plan_collects_everything_in_order_and_each_once():
    findings = Findings(collects=True)

    for word in ("disk", "memory", "disk"):
        with findings.check():
            refuse(word)

    assert findings.of("source") == (
        Finding("NO_DISK", Severity.BLOCKER, "source", "no disk"),
        Finding("NO_MEMORY", Severity.BLOCKER, "source", "no memory"),
    )


def test_mistakes_of_our_own_are_never_collected():
    with pytest.raises(Bug), Findings(collects=True).check():
        raise Bug("ours")

    with pytest.raises(ZeroDivisionError), Findings(collects=True).check():
        raise ZeroDivisionError


def test_a_risk_is_its_sentence_and_keeps_its_code():
    risk = Risk("the cache is never flushed", "CACHE_UNSAFE")

    assert risk == "the cache is never flushed"
    assert json.loads(json.dumps([risk])) == ["the cache is never flushed"]
    assert [one.code for one in warnings_of("source", (risk, "something else"))] == ["CACHE_UNSAFE", "RISK"]
