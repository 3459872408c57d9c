"""A repeated request gets the first answer."""

from __future__ import annotations

import asyncio

import pytest

from agent.answers import KEPT_COUNT, Answers
from common.errors import WrongState


class Work:
    """Counts how often it was done."""

    def __init__(self) -> None:
        self.count = 0
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self) -> int:
        self.count += 1
        await self.go.wait()
        return self.count


async def test_a_repeat_gives_the_first_answer_and_does_nothing():
    answers, work = Answers(), Work()

    given = [await answers.once("Start", "r1", work) for _ in range(3)]

    assert given == [1, 1, 1]


async def test_a_repeat_during_the_work_waits_for_it():
    answers, work = Answers(), Work()
    work.go.clear()

    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(answers.once("Start", "r1", work)) for _ in range(3)]
        await asyncio.sleep(0)
        work.go.set()

    assert [task.result() for task in asked] == [1, 1, 1]


async def test_the_same_id_of_another_method_is_another_request():
    answers, work = Answers(), Work()

    assert await answers.once("Start", "r1", work) == 1
    assert await answers.once("Stop", "r1", work) == 2


async def test_without_an_id_the_work_is_done_each_time():
    answers, work = Answers(), Work()

    assert [await answers.once("Start", "", work) for _ in range(2)] == [1, 2]


async def test_work_that_failed_is_done_anew():
    answers, work = Answers(), Work()

    async def fail() -> int:
        raise WrongState("not now")

    with pytest.raises(WrongState):
        await answers.once("Start", "r1", fail)

    assert await answers.once("Start", "r1", work) == 1


async def test_the_oldest_answers_are_forgotten():
    answers, work = Answers(), Work()

    for number in range(KEPT_COUNT + 1):
        await answers.once("Start", f"r{number}", work)

    assert await answers.once("Start", f"r{KEPT_COUNT}", work) == KEPT_COUNT + 1
    assert await answers.once("Start", "r0", work) == KEPT_COUNT + 2
