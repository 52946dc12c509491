"""What the robustness tests count, printed at the end of a run: bad inputs tried, faults injected, what was lost."""

from __future__ import annotations

from collections import Counter

COUNTS: Counter[str] = Counter()
