"""Notices come in order, end with Gone, and a slow reader costs nobody else anything."""

from __future__ import annotations

from agent.qemu.subscription import QUEUE_LENGTH, Event, Feed, Gone, Notice, Reconnected


def event(number: int) -> Event:
    return Event("STOP", {"number": number}, at_s=0.0, received_s=0.0)


async def test_notices_come_in_order_and_end_with_gone():
    feed = Feed()
    told: list[Notice] = [event(1), Reconnected("test"), event(2), Gone()]

    with feed.subscribe() as notices:
        for notice in told:
            feed.publish(notice)

        assert [notice async for notice in notices] == told


async def test_a_reader_sees_only_what_came_after_it_subscribed():
    feed = Feed()
    feed.publish(event(1))

    with feed.subscribe() as notices:
        feed.publish(event(2))

        assert await anext(notices) == event(2)


async def test_who_subscribes_to_a_qemu_that_is_gone_learns_it():
    feed = Feed()
    feed.publish(Gone())

    with feed.subscribe() as notices:
        assert [notice async for notice in notices] == [Gone()]


async def test_a_reader_that_is_too_slow_is_told_to_query_and_goes_on_from_there():
    feed = Feed()
    with feed.subscribe() as slow, feed.subscribe() as quick:
        for number in range(QUEUE_LENGTH + 1):
            feed.publish(event(number))
            assert await anext(quick) == event(number)

        assert isinstance(await anext(slow), Reconnected)
        assert await anext(slow) == event(QUEUE_LENGTH)


async def test_a_reader_that_left_gets_nothing():
    feed = Feed()
    with feed.subscribe() as notices:
        pass

    feed.publish(event(1))
    assert notices._queue.empty()
