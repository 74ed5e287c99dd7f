"""Conversion of cron expressions between the usual five fields and the six fields of Kubeflow Pipelines."""

import datetime
import re

from croniter import CroniterError, croniter

_FIELDS = "minute, hour, day of the month, month, day of the week"
_NAME = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|sun|mon|tue|wed|thu|fri|sat"


class CronError(ValueError):
    """Not a cron expression with five fields; the message gives the reason."""


def to_kubeflow(expression: str) -> str:
    """Convert to six fields, seconds first, with every value listed.

    The values are listed because Kubeflow Pipelines supports neither 7 for Sunday nor ranges that wrap around.

    Args:
        expression: Five fields, or @hourly, @daily, @weekly, @monthly or @yearly.

    Raises:
        CronError: If the expression is invalid or never matches a date.
    """
    expression = expression.strip().lower()
    fields = expression.split()
    if len(fields) != 5 and not (len(fields) == 1 and expression.startswith("@")):
        raise CronError(
            f"--cron {expression!r}: {len(fields)} fields; write five: {_FIELDS}. The field for seconds that Kubeflow "
            "Pipelines requires is added automatically"
        )
    # croniter also accepts the last day, the nth weekday and random values, which Kubeflow Pipelines does not.
    if fields[1:] and (unsupported := re.search(rf"\b(?!(?:{_NAME})\b)[a-z]\w*|#", expression)):
        raise CronError(f"--cron {expression!r}: Kubeflow Pipelines does not support {unsupported[0]!r}")
    try:
        values, _ = croniter.expand(expression)
        six_fields = " ".join(["0", *(",".join(map(str, field)) for field in values)])
        next_times(six_fields, datetime.datetime.now(datetime.UTC), 1)
    except CroniterError as error:
        raise CronError(f"--cron {expression!r}: {error}; the five fields are: {_FIELDS}") from None
    return six_fields


def from_kubeflow(expression: str) -> str:
    """Convert six fields to five by removing the seconds if they are 0; return anything else unchanged."""
    return expression.removeprefix("0 ") if len(expression.split()) == 6 else expression


def next_times(six_fields: str, start: datetime.datetime, count: int) -> list[datetime.datetime]:
    """Return the next `count` times after `start` that match a cron expression with six fields.

    Raises:
        CroniterError: If no time matches, or croniter does not support the expression.
    """
    times = croniter(six_fields, start, ret_type=datetime.datetime, second_at_beginning=True)
    return [times.get_next() for _ in range(count)]
