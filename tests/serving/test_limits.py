"""The rate limit, against a clock that the test turns."""

from __future__ import annotations

import pytest

from masm.serving.limits import MOST_CLIENTS, RateLimit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_minute_holds_as_many_requests_as_it_says_for_each_client() -> None:
    clock = Clock()
    limit = RateLimit(3, clock)
    assert [limit.admit("a") for _ in range(3)] == [0, 0, 0]
    assert limit.admit("a") == pytest.approx(20)
    assert limit.admit("b") == 0
    clock.now = 19
    assert limit.admit("a") == pytest.approx(1)
    clock.now = 20
    assert [limit.admit("a"), limit.admit("a")] == [0, pytest.approx(20)]


def test_rest_gives_back_a_minute_of_requests_and_no_more() -> None:
    clock = Clock()
    limit = RateLimit(3, clock)
    limit.admit("a")
    clock.now = 1e6
    assert [limit.admit("a") for _ in range(4)] == [0, 0, 0, pytest.approx(20)]


def test_long_run_rate_is_the_limit() -> None:
    clock = Clock()
    limit = RateLimit(60, clock)
    admitted = 0
    for tenth in range(6000):  # ten minutes of ten requests a second
        clock.now = tenth / 10
        admitted += limit.admit("a") == 0
    assert admitted == pytest.approx(60 + 600, abs=1)


def test_further_images_of_a_request_are_charged_even_beyond_what_is_left() -> None:
    clock = Clock()
    limit = RateLimit(6, clock)
    assert limit.admit("a") == 0
    limit.charge("a", 9)
    assert limit.admit("a") == pytest.approx(50)  # 5 - 9 are left, one more comes in 10 s
    clock.now = 50
    assert [limit.admit("a"), limit.admit("a")] == [0, pytest.approx(10)]
    assert limit.admit("b") == 0


def test_without_a_limit_all_are_admitted() -> None:
    limit = RateLimit(None, Clock())
    assert not any(limit.admit("a") for _ in range(1000))


def test_clients_that_have_all_their_requests_left_are_forgotten() -> None:
    clock = Clock()
    limit = RateLimit(2, clock)
    for number in range(MOST_CLIENTS):
        limit.admit(f"{number}")
    clock.now = 60
    limit.admit("late")
    limit.admit("late")
    limit.admit("other")
    assert set(limit._buckets) == {"late", "other"}
    assert limit.admit("late") > 0
