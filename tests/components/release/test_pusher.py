"""The date that Pusher records in a version. Tests of complete runs cover the rest of Pusher."""

import pytest

from components.release.pusher import resolve_run_date

TIME = "2026-11-29T03:00:00Z"
UNKNOWN = "{{$.pipeline_job_schedule_time_utc}}"


@pytest.mark.parametrize(
    ("run_date", "schedule_time", "recorded"),
    [
        ("[[ScheduledTime]]", TIME, TIME),
        ("2026-11-23", TIME, "2026-11-23"),
        ("", TIME, ""),  # started manually: the server provides the creation time
        ("", "", ""),
        ("[[ScheduledTime]]", UNKNOWN, ""),
        ("[[ScheduledTime]]", "", ""),
        (UNKNOWN, UNKNOWN, ""),
    ],
)
def test_pusher_records_a_date_and_never_a_placeholder(capsys, run_date, schedule_time, recorded):
    assert resolve_run_date(run_date, schedule_time) == recorded
    unresolved = bool(run_date) and not recorded
    assert ("run_date is recorded as empty" in capsys.readouterr().out) == unresolved
