"""Seoul's time and days: what KIS means by a date, an hour and a day's volume."""

from __future__ import annotations

import datetime as dt
from typing import Final

KST: Final = dt.timezone(dt.timedelta(hours=9), "KST")
KST_NS: Final = 9 * 3_600 * 10**9
"""How far Seoul is ahead of UTC, nanoseconds; there is no summer time."""
DAY_NS: Final = 86_400 * 10**9


def time_of(wall_ns: int) -> dt.datetime:
    """Date and time in Seoul, to the second, of nanoseconds since 1970 UTC."""
    return dt.datetime.fromtimestamp(wall_ns // 10**9, KST)


def date_of(wall_ns: int) -> dt.date:
    """The date in Seoul of nanoseconds since 1970 UTC."""
    return time_of(wall_ns).date()


def day_number(wall_ns: int) -> int:
    """The number of the day in Seoul, quicker than :func:`date_of`: equal on one day."""
    return (wall_ns + KST_NS) // DAY_NS
