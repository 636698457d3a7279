"""The table of the benchmarks compares the right figures and judges them rightly."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import BENCHMARKS, chosen
from benchmarks.report import Sample, compare, medians, table
from benchmarks.rows import ROWS, Floor, Kind


def samples(benchmark: str, side: str, metric: str, *values: float) -> list[Sample]:
    return [Sample(benchmark, side, number, {metric: value}) for number, value in enumerate(values, 1)]


def test_the_median_of_the_rounds_counts() -> None:
    found = medians(samples("drain-redis", "celery", "per_second", 400, 1000, 450))
    assert found == {"drain-redis": {"celery": {"per_second": 450}}}


@pytest.mark.parametrize(
    ("floor", "ours", "theirs", "verdict"),
    [
        (Floor(Kind.TIMES_AT_LEAST, 8), 3600, 450, True),
        (Floor(Kind.TIMES_AT_LEAST, 8), 3599, 450, False),
        (Floor(Kind.TIMES_AT_LEAST, 8), 3600, None, None),
        (Floor(Kind.TIMES_AT_MOST, 0.5), 2.0, 4.0, True),
        (Floor(Kind.TIMES_AT_MOST, 0.5), 2.1, 4.0, False),
        (Floor(Kind.AT_MOST, 3), 3.0, None, True),
        (Floor(Kind.AT_MOST, 3), 3.1, 1000, False),
    ],
)
def test_a_floor_is_reached_or_not(
    floor: Floor, ours: float, theirs: float | None, verdict: bool | None
) -> None:
    assert floor.reached(ours, theirs) is verdict


def test_the_embedded_broker_is_held_against_celery_on_redis() -> None:
    records = compare(
        samples("drain-redis", "celery", "per_second", 450)
        + samples("drain-sqlite", "celery_clone", "per_second", 3001)
    )
    sqlite = next(record for record in records if record["benchmark"] == "drain-sqlite")
    assert sqlite["celery"] == 450
    assert sqlite["reached"] is True
    assert "against Celery on Redis" in table(records)


def test_a_row_that_is_not_reached_says_so() -> None:
    records = compare(
        samples("drain-redis", "celery", "per_second", 450)
        + samples("drain-redis", "celery_clone", "per_second", 900)
    )
    assert "NOT REACHED" in table(records)
    assert "2.00" in table(records)


def test_every_row_stands_on_a_benchmark_that_exists() -> None:
    assert {row.benchmark for row in ROWS} == set(BENCHMARKS)
    assert {row.against for row in ROWS if row.against} <= set(BENCHMARKS)


def test_benchmarks_are_chosen_by_the_beginning_of_their_names() -> None:
    assert set(chosen("drain-redis, imports")) == {"drain-redis", "imports"}
    assert chosen("") == BENCHMARKS
    with pytest.raises(SystemExit, match="drain-redis"):
        chosen("nothing")
