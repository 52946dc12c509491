"""The one form in which a measured value is written, so that one sanitize rule can find it.

Times and accuracies differ from run to run and from machine to machine. Written as `≈ 94.4 %` they are told from
what must be the same everywhere, and `tests/nbval_sanitize.cfg` compares all of them as equal.
"""

from __future__ import annotations

import math
from numbers import Integral

NO_CUDA = "no CUDA here"  # stands where a GPU's value would; the same rule matches both

_NUMBER = r"[-+]?(?:\d+(?:,\d{3})*(?:\.\d+)?|nan|inf)"
_UNIT = r"(?: ?(?:%|×|points?|[nµm]?s|[kMG]?B|[kMG]?MACs|CUDA devices?)(?!\w))?"
_QUANTITY = _NUMBER + _UNIT
PATTERN = rf"≈ {_QUANTITY}(?: ± {_QUANTITY})?(?: \[{_QUANTITY}, {_QUANTITY}\])?|{NO_CUDA}"

SHARES = ("%", "points")  # the units of fractions, of which a hundredth is one
_SCALES = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")),
    "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "MACs": ((1e9, "GMACs"), (1e6, "MMACs"), (1e3, "kMACs"), (1.0, "MACs")),
    "%": ((0.01, "%"),),
    "points": ((0.01, "points"),),
}


def exact(value: float, unit: str = "") -> str:
    """A chosen or counted value, not a measured one: no more digits than it has."""
    return f"{100 * value if unit in SHARES else value:g} {unit}".rstrip()


def number(value: float, digits: int = 3) -> str:
    """A number with that many significant digits, thousands separated, never an exponent; a count as it is."""
    if isinstance(value, Integral):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    size = 0 if value == 0 else math.floor(math.log10(abs(value)))
    return f"{value:,.{min(9, max(0, digits - 1 - size))}f}"


def quantity(value: float, unit: str = "", digits: int = 3, scale_by: float | None = None) -> str:
    """A value with its unit. "%" and "points" take a fraction, "s" and "B" choose a readable prefix."""
    scales = _SCALES.get(unit)
    if scales is None:
        return f"{number(value, digits)}{'' if unit in ('', '×') else ' '}{unit}"
    size = abs(value if scale_by is None else scale_by)
    factor, name = next((s for s in scales if size >= s[0]), scales[-1])
    return f"{number(value / factor, digits)} {name}"


def measured(
    value: float | None,
    unit: str = "",
    *,
    digits: int = 3,
    spread: float | None = None,
    interval: tuple[float, float] | None = None,
) -> str:
    """A measured value as text, e.g. `≈ 94.4 %`, `≈ 94.4 % ± 0.6 %` or `≈ 1.32 ms [1.29 ms, 1.40 ms]`.

    "%" and "points" take fractions (0.944); "s", "B" and "MACs" choose their prefix; other units stand as they are.
    None says that there is no CUDA here.
    """
    if value is None:
        return NO_CUDA
    text = f"≈ {quantity(value if isinstance(value, Integral) else float(value), unit, digits)}"
    if spread is not None:
        text += f" ± {quantity(float(spread), unit, 2, scale_by=float(value))}"
    if interval is not None:
        low, high = (quantity(float(x), unit, digits, scale_by=float(value)) for x in interval)
        text += f" [{low}, {high}]"
    return text
