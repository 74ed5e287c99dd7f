"""Cron expressions: five fields as people write them, six as Kubeflow Pipelines reads them."""

import datetime
import re

from croniter import CroniterError, croniter

_FIELDS = "minute, hour, day of the month, month, day of the week"
_NAME = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|sun|mon|tue|wed|thu|fri|sat"


class CronError(ValueError):
    """Not a cron expression of five fields; the message says what is wrong."""


def to_kubeflow(expression: str) -> str:
    """Six fields, seconds first, in plain numbers: Kubeflow Pipelines knows neither day 7 nor ranges over the end.

    Args:
        expression: five fields, or @hourly, @daily, @weekly, @monthly, @yearly.

    Raises:
        CronError: it is something else, or no date ever fits.
    """
    expression = expression.strip().lower()
    fields = expression.split()
    if len(fields) != 5 and not (len(fields) == 1 and expression.startswith("@")):
        raise CronError(
            f"--cron {expression!r}: {len(fields)} fields; write five: {_FIELDS}. The seconds that Kubeflow Pipelines "
            "wants in front are added here"
        )
    # croniter knows more than Kubeflow Pipelines: the last day, the nth weekday, random minutes.
    if fields[1:] and (strange := re.search(rf"\b(?!(?:{_NAME})\b)[a-z]\w*|#", expression)):
        raise CronError(f"--cron {expression!r}: Kubeflow Pipelines does not know {strange[0]!r}")
    try:
        numbers, _ = croniter.expand(expression)
        six = " ".join(["0", *(",".join(map(str, field)) for field in numbers)])
        next_times(six, datetime.datetime.now(datetime.UTC), 1)
    except CroniterError as error:
        raise CronError(f"--cron {expression!r}: {error}; the five fields are: {_FIELDS}") from None
    return six


def from_kubeflow(six: str) -> str:
    """The five fields of six, where seconds do not matter; anything else as it is."""
    return six.removeprefix("0 ") if len(six.split()) == 6 else six


def next_times(six: str, start: datetime.datetime, count: int) -> list[datetime.datetime]:
    """The next times after `start` that the six fields name.

    Raises:
        CroniterError: there are none, or only Kubeflow Pipelines understands them.
    """
    times = croniter(six, start, ret_type=datetime.datetime, second_at_beginning=True)
    return [times.get_next() for _ in range(count)]
