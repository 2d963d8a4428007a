"""When an explanation is due, with a clock of our own."""

from __future__ import annotations

import json

import pytest

from lightning_explain.monitor.schedule import Schedule


def explained_at(schedule: Schedule, counts: list[int], seconds: float = 1.0, each: float = 10.0) -> list[int]:
    """The counts at which an explanation is made; every count takes ``each`` seconds of training."""
    made, now = [], 0.0
    schedule.start(now)
    for count in counts:
        now += each
        if schedule.due(count):
            made.append(count)
            schedule.done(count, now, now + seconds)
            now += seconds
    return made


@pytest.mark.parametrize(("every", "expected"), [(1, [1, 2, 3, 4, 5, 6, 7]), (2, [2, 4, 6]), (5, [5]), (8, [])])
def test_every_so_many_epochs(every: int, expected: list[int]) -> None:
    assert explained_at(Schedule(every), list(range(1, 8))) == expected


def test_a_step_that_takes_several_batches_is_explained_once() -> None:
    batches = [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert explained_at(Schedule(2), batches) == [2, 4]
    assert explained_at(Schedule(1), batches) == [1, 2, 3, 4]


def test_a_multiple_that_is_jumped_over_is_explained_at_the_next_count() -> None:
    assert explained_at(Schedule(3), [1, 2, 4, 5, 6, 7, 11]) == [4, 6, 11]


def test_an_explanation_at_the_start_counts_for_nothing() -> None:
    schedule = Schedule(2)
    schedule.start(0.0)
    assert not schedule.due(0)
    schedule.done(0, 0.0, 5.0)
    assert not schedule.due(0)
    assert not schedule.due(1)
    assert schedule.due(2)


@pytest.mark.parametrize("stop", range(9))
@pytest.mark.parametrize("options", [{"every": 2}, {"every": 1, "max_overhead": 0.3}])
def test_a_resumed_schedule_goes_on_as_if_it_had_never_stopped(options: dict[str, float], stop: int) -> None:
    whole = explained_at(Schedule(**options), list(range(1, 13)), seconds=5.0)
    first, second = Schedule(**options), Schedule(**options)
    made, now = [], 1000.0
    first.start(now)
    current = first
    for count in range(1, 13):
        now += 10.0
        if current.due(count):
            made.append(count)
            current.done(count, now, now + 5.0)
            now += 5.0
            if count <= stop:
                saved = json.loads(json.dumps(first.state()))
        if count == stop and made:
            second.load(saved)
            now = 7.0
            second.start(now)
            # Training since the last explanation is not saved, so it is done again.
            now += 10.0 * (count - made[-1])
            current = second
    assert made == whole


def test_a_state_loads_whatever_else_it_holds() -> None:
    schedule = Schedule(every=3)
    schedule.load({"last": 6, "unknown": 1})
    assert schedule.last == 6
    assert not schedule.due(8)
    assert schedule.due(9)


def test_a_limit_that_is_gone_after_a_resume_puts_nothing_off() -> None:
    limited = Schedule(1, 0.01)
    assert explained_at(limited, [1, 2, 3], seconds=50.0) == [1]
    free, tight = Schedule(1), Schedule(1, 0.02)
    free.load(limited.state())
    tight.load(limited.state())
    assert free.due(2)
    assert not tight.due(2)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("limit", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("cost", [0.5, 3.0, 40.0])
@pytest.mark.parametrize("at_start", [False, True])
def test_the_overhead_stays_under_the_limit_after_the_first_explanation(
    every: int, limit: float, cost: float, at_start: bool
) -> None:
    schedule, now, made = Schedule(every, limit), 100.0, 0
    schedule.start(now)
    if at_start:
        schedule.done(0, now, now + cost)
        now += cost
    trained = 0.0
    for count in range(1, 2000):
        now += 2.0
        trained += 2.0
        if schedule.due(count):
            spent = schedule.overhead(now, now + cost)
            assert spent is not None
            assert spent == pytest.approx((made + 1 + at_start) * cost / trained)
            assert made == 0 or spent <= limit + 1e-9
            schedule.done(count, now, now + cost)
            now += cost
            made += 1
    assert made >= 1
    # The limit is used, not only kept: less than two explanations are missing.
    wanted = min(2000 // every, int(limit * trained / cost))
    assert made + at_start >= wanted - 2
    assert schedule.lengthened == (made < 1999 // every)


def test_a_slower_training_allows_more_and_a_faster_one_fewer() -> None:
    slow = explained_at(Schedule(1, 0.1), list(range(1, 100)), seconds=5.0, each=50.0)
    middle = explained_at(Schedule(1, 0.1), list(range(1, 100)), seconds=5.0, each=10.0)
    fast = explained_at(Schedule(1, 0.1), list(range(1, 100)), seconds=5.0, each=1.0)
    assert len(slow) == 99
    assert len(slow) > len(middle) > len(fast) >= 1


def test_without_a_limit_nothing_is_put_off() -> None:
    schedule = Schedule(1)
    assert explained_at(schedule, list(range(1, 20)), seconds=1e6) == list(range(1, 20))
    assert not schedule.lengthened


def test_there_is_no_overhead_before_any_training() -> None:
    schedule = Schedule()
    schedule.start(50.0)
    assert schedule.overhead(50.0, 51.0) is None
    schedule.done(0, 50.0, 51.0)
    assert schedule.overhead(51.0, 52.0) is None
    assert schedule.overhead(61.0, 62.0) == pytest.approx(0.2)


@pytest.mark.parametrize(("begun", "every"), [(100_000, 100), (50, 1), (7, 5)])
def test_a_schedule_that_no_checkpoint_restored_counts_its_seconds_from_where_they_begin(
    begun: int, every: int
) -> None:
    """Ten seconds of a count allow one second of explaining in ten counts, wherever the training was resumed."""
    fresh, late, now = Schedule(every, 0.1), Schedule(every, 0.1), 0.0
    late.begin_at(begun)
    expected = explained_at(fresh, list(range(1, 50 * every)), seconds=20.0 * every)
    found = explained_at(late, list(range(begun + 1, begun + 50 * every)), seconds=20.0 * every)
    assert len(found) == len(expected) > 1
    assert all(abs(at - begun - as_fresh) < 2 * every for at, as_fresh in zip(found, expected, strict=True))
    # Saved and loaded again, and interrupted once more, it goes on in the same way.
    second = Schedule(every, 0.1)
    second.load(json.loads(json.dumps(late.state())))
    second.begin_at(found[-1])
    assert (second.first, second.not_before) == (begun, late.not_before)
    second.start(now)
    assert second.trained(now) == late.train_seconds


def test_what_is_passed_over_is_not_explained_and_nothing_is_explained_twice() -> None:
    schedule = Schedule(3)
    schedule.pass_over(7)
    assert [count for count in range(1, 13) if schedule.due(count)] == [9, 10, 11, 12]
    schedule.pass_over(2)
    assert schedule.last == 7, "an earlier count takes nothing back"
    assert explained_at(schedule, list(range(1, 13))) == [9, 12]


def beside(limit: float, publishing: float, waits: bool, counts: int) -> tuple[int, float]:
    """How many explanations were made beside a training, and their largest share of it when one more was handed over.

    Each takes a worker ten counts of one second, and training as long as it waits for it and publishes it.
    """
    schedule, now, shares = Schedule(1, limit), 0.0, list[float]()
    handed_over: int | None = None
    schedule.start(now)
    for count in range(1, counts):
        now, due = now + 1.0, schedule.due(count) and schedule.has_room(now + 1.0)
        arrived = handed_over is not None and count >= handed_over + 10
        if handed_over is not None and (arrived or (waits and due)):
            started, left = now, max(0.0, handed_over + 10.0 - count)
            now += left + publishing
            schedule.done(handed_over, started, now, count)
            handed_over, due = None, schedule.due(count) and schedule.has_room(now)
        schedule.pass_over(count)
        if due and handed_over is None:
            handed_over = count
            shares.append(schedule.explain_seconds / schedule.trained(now))
    return len(shares), max(shares[2:])


@pytest.mark.parametrize("waits", [False, True], ids=["skip", "wait"])
@pytest.mark.parametrize(("limit", "publishing"), [(0.05, 0.05), (0.05, 1.0), (0.01, 0.05)])
def test_the_limit_is_kept_where_an_explanation_spans_several_counts(
    limit: float, publishing: float, waits: bool
) -> None:
    made, share = beside(limit, publishing, waits, 10_000)
    assert share <= limit
    # Of those that the limit allows, nine in ten are made, if no time goes into waiting and the worker is not busy.
    if not waits:
        assert made >= 0.9 * min(1000, limit * 10_000 / publishing)


def test_the_next_explanation_is_expected_to_take_as_long_as_the_longer_of_the_last_two() -> None:
    schedule, expected = Schedule(1, 0.1), []
    schedule.start(0.0)
    for count, seconds in enumerate((9.0, 1.0, 1.0, 5.0), 1):
        schedule.done(count, 100.0 * count, 100.0 * count + seconds)
        expected.append(schedule.next_seconds)
    assert expected == [9.0, 9.0, 1.0, 5.0]
    # Nobody expects more than was ever spent, whatever a checkpoint says.
    schedule.load({"next_seconds": 1e6})
    schedule.take_up(4)
    assert schedule.next_seconds == schedule.explain_seconds == 16.0
