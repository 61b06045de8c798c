"""What a measure found in one run."""

from __future__ import annotations

import attrs


@attrs.frozen
class Finding:
    """What a measure found in one run.

    Attributes:
        worst: figures by name; a report keeps the largest of each.
        samples: values by name; a report shows p50, p99 and the largest of all runs.
        counts: figures by name that are added up.
        marks: what occurred at all; a report joins them.
        faults: what must not be.
    """

    worst: dict[str, float] = attrs.field(factory=dict)
    samples: dict[str, list[float]] = attrs.field(factory=dict)
    counts: dict[str, int] = attrs.field(factory=dict)
    marks: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
