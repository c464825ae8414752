"""How long events waited, kept by the second in which they came."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Final

# Bins grow by a tenth; the first ends at a tenth of a millisecond.
_GROWTH: Final = math.log(1.1)
_FIRST: Final = 1e-4
# So many points stand for a stretch of events that came evenly.
_POINTS: Final = 4


class Waits:
    """A histogram for each second, so that any stretch of time can be asked for afterwards."""

    def __init__(self) -> None:
        self._seconds: defaultdict[int, Counter[int]] = defaultdict(Counter)

    def add(self, since: float, until: float, count: int, done: float) -> None:
        """`count` events that came evenly between `since` and `until` were stored at `done`."""
        points = min(count, _POINTS)
        for point in range(points):
            at = since + (until - since) * (point + 0.5) / points
            bin_ = int(math.log(max(done - at, _FIRST) / _FIRST) / _GROWTH)
            share = count // points + (point < count % points)
            self._seconds[int(at)][bin_] += share

    def percentile(self, share: float, since: float, until: float) -> float:
        """Seconds within which this share of the events were stored that came in a stretch; 0 without any."""
        merged: Counter[int] = Counter()
        for second, bins in self._seconds.items():
            if since <= second < until:
                merged.update(bins)
        left = share * merged.total()
        for bin_ in sorted(merged):
            left -= merged[bin_]
            if left <= 0:
                return _FIRST * math.exp((bin_ + 0.5) * _GROWTH)
        return 0.0
