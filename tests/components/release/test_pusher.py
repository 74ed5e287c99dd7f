"""Which date a pushed version records; what Pusher pushes is tested with whole runs."""

import pytest

from components.release.pusher import date_of_run

TIME = "2026-11-29T03:00:00Z"
UNKNOWN = "{{$.pipeline_job_schedule_time_utc}}"


@pytest.mark.parametrize(
    ("run_date", "schedule_time", "recorded"),
    [
        ("[[ScheduledTime]]", TIME, TIME),
        ("2026-11-23", TIME, "2026-11-23"),
        ("", TIME, ""),  # somebody started it: the server gives the time of its creation
        ("", "", ""),
        ("[[ScheduledTime]]", UNKNOWN, ""),
        ("[[ScheduledTime]]", "", ""),
        (UNKNOWN, UNKNOWN, ""),
    ],
)
def test_a_version_records_a_date_and_no_placeholder(capsys, run_date, schedule_time, recorded):
    assert date_of_run(run_date, schedule_time) == recorded
    lost = bool(run_date) and not recorded
    assert ("run_date is recorded as empty" in capsys.readouterr().out) == lost
