"""Planned moments: what is written, what is due, what was missed, and the clocks' own leaps."""

from datetime import UTC, datetime
from itertools import islice, pairwise, takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import UsageError
from agentloop.schedule import Calendar, Cron, Every, calendar_of, interval
from agentloop.schedule.calendar import LATE, MOST, iso

DAY = 86400.0


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("30m", 1800), ("6h", 21600), ("1d", 86400), ("1.5h", 5400)]
)
def test_intervals(text: str, seconds: float) -> None:
    assert interval(text) == interval(f" {text} ") == seconds


@given(st.text(max_size=6))
def test_what_is_no_interval_is_refused(text: str) -> None:
    try:
        assert interval(text) > 0
    except UsageError as error:
        assert "6h" in str(error)


@pytest.mark.parametrize(
    "text",
    ["0m", "-1h", "5", "h", "", "1w", "1e3s", "0.5s", "inf", "infd", "9" * 400 + "d", "3661d"],
)
def test_wrong_intervals(text: str) -> None:
    with pytest.raises(UsageError) as told:
        interval(text)
    assert len(str(told.value)) < 200


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("", "five fields"), ("0 3 * *", "five fields"), ("0 0 3 * * *", "five fields"),
        ("@daily", "five fields"), ("61 3 * * *", "bad minute"), ("0 25 * * *", "bad hour"),
        ("0 3 31 2 *", "bad day-of-month"), ("0 0 */20 * 1L", "0 3"), ("a b c d e", "bad minute"),
    ],
)  # fmt: skip
def test_wrong_expressions(expression: str, says: str) -> None:
    if expression == "0 0 */20 * 1L":  # correct, and never true
        with pytest.raises(UsageError, match="never comes true"):
            Cron(expression)
        return
    with pytest.raises(UsageError, match=says):
        Cron(expression)


def test_a_wrong_zone_and_two_clocks() -> None:
    with pytest.raises(UsageError, match="Mars/Base"):
        Cron("0 3 * * *", "Mars/Base")
    with pytest.raises(UsageError, match="one of them"):
        calendar_of(cron="0 3 * * *", timezone="UTC", every="1h", missed="once", needed=False)
    daily = calendar_of(cron="", timezone="UTC", every="", missed="once", needed=True)
    assert daily.timetable == Every(DAY)
    alone = calendar_of(cron="", timezone="UTC", every="", missed="once", needed=False)
    assert alone.timetable is None and alone.next(0.0) == alone.due(0.0, 1e9) == []


def named(cron: Cron, start: str, n: int) -> list[str]:
    return [iso(moment) for moment in islice(cron.after(at(start)), n)]


def test_daylight_saving_time_neither_skips_nor_doubles_a_day() -> None:
    night = Cron("30 2 * * *", "Europe/Berlin")
    # On 29 March 2026 there is no 2:30; the next moment that exists is 3:00, which is 1:00 UTC.
    assert named(night, "2026-03-28T00:00", 3) == [
        "2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"
    ]  # fmt: skip
    # On 25 October 2:30 comes twice; once is enough.
    assert named(night, "2026-10-24T12:00", 2) == ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]
    hourly = Cron("0 * * * *", "Europe/Berlin")
    for day in ("2026-03-28T20:00", "2026-10-24T20:00"):
        moments = list(islice(hourly.after(at(day)), 12))
        assert [b - a for a, b in pairwise(moments)] == [3600.0] * 11


def test_in_an_hour_that_comes_twice_nothing_is_planned_for_the_past() -> None:
    night, second_pass = Cron("30 2 * * *", "Europe/Berlin"), at("2026-10-25T01:10")
    assert next(night.after(second_pass)) == at("2026-10-26T01:30")
    assert next(night.upto(second_pass)) == at("2026-10-25T00:30")


def test_leap_days() -> None:
    leap = Cron("0 0 29 2 *")
    assert named(leap, "2026-01-01T00:00", 2) == ["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"]
    daily = named(Cron("0 12 * * *"), "2028-02-27T13:00", 3)
    assert daily == ["2028-02-28T12:00:00Z", "2028-02-29T12:00:00Z", "2028-03-01T12:00:00Z"]


ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago"]
EXPRESSIONS = [
    "0 3 * * *", "30 2 * * *", "*/30 * * * *", "0 * * * *", "15 1-4 * * *", "0 */2 * * *",
    "45 2 * * SUN", "0,30 2,3 * * *", "59 1 * * *", "5 0 1 * *", "0 0 L * *",
]  # fmt: skip


@given(
    st.sampled_from(EXPRESSIONS), st.sampled_from(ZONES),
    st.integers(int(at("2026-01-01")), int(at("2027-12-31"))), st.integers(0, int(9 * DAY)),
)  # fmt: skip
def test_looking_back_finds_what_looking_forward_planned(
    expression: str, zone: str, start: int, length: int
) -> None:
    cron, end = Cron(expression, zone), start + length
    forward = list(takewhile(lambda moment: moment <= end, cron.after(start)))
    back = list(takewhile(lambda moment: moment > start, cron.upto(end)))
    assert forward == back[::-1] == sorted(set(forward))


@given(
    st.floats(0.001, 1e6), st.floats(0, 2e9), st.floats(-1e7, 1e7), st.integers(1, 5)
)  # fmt: skip
def test_an_interval_is_a_grid_in_both_directions(
    seconds: float, start: float, away: float, n: int
) -> None:
    grid = Every(round(seconds, 3) or 0.001, round(start, 3))
    moment = start + away
    soon, late = list(islice(grid.after(moment), n)), list(islice(grid.upto(moment), n))
    assert late[0] <= moment + 1e-3 and soon[0] >= moment - 1e-3
    moments = [*late[::-1], *soon]
    for a, b in pairwise(moments):
        assert b - a == pytest.approx(grid.seconds, abs=2e-3)


HOURLY = Every(3600.0)


@pytest.mark.parametrize(
    ("missed", "late", "chosen", "given_up"),
    [
        ("once", 100.0, 3, [1, 2]), ("all", 100.0, 1, []), ("skip", 100.0, 3, [1, 2]),
        ("once", 1800.0, 3, [1, 2]), ("all", 1800.0, 1, []), ("skip", 1800.0, None, [1, 2, 3]),
    ],
)  # fmt: skip
def test_what_becomes_of_missed_moments(
    missed: str, late: float, chosen: int | None, given_up: list[int]
) -> None:
    calendar = Calendar(HOURLY, missed)  # type: ignore[arg-type]
    now = 3 * 3600.0 + late
    due = calendar.due(0.0, now)
    assert due == [3600.0, 7200.0, 10800.0] and (late > LATE) == (late == 1800.0)
    expected = None if chosen is None else chosen * 3600.0
    assert calendar.choose(due, now) == (expected, [hour * 3600.0 for hour in given_up])
    assert calendar.choose([], now) == (None, [])


def test_ten_years_are_made_up_for_by_the_latest_hundred() -> None:
    calendar, now = Calendar(HOURLY, "all"), 10 * 365 * DAY
    due = calendar.due(0.0, now)
    first, given_up = calendar.choose(due, now)
    assert len(due) == MOST + 1 and first == due[1] and given_up == due[:1]
