"""The exercises of notebook 16: choose from a report, spend by the millisecond, and meet a budget that is measured."""

from __future__ import annotations

from typing import Any

from ..learn.exercise import Exercise, WrongAnswer, call

TRIALS = [
    {"name": "a", "time": 1.00, "valid": 0.97, "test": 0.96},
    {"name": "b", "time": 0.62, "valid": 0.96, "test": 0.97},
    {"name": "c", "time": 0.48, "valid": 0.93, "test": 0.92},
    {"name": "d", "time": 0.49, "valid": 0.92, "test": 0.94},
    {"name": "e", "time": 0.30, "valid": 0.85, "test": 0.86},
]


def check_read(answer: Any) -> str | None:
    """The most accurate on validation, within the limit."""
    found = call(answer, [dict(t) for t in TRIALS], 0.5)
    if not isinstance(found, str):
        return "return a name, such as 'c': the trial you would take home."
    messages = {
        "a": "that one is the dense network: it is over the budget. First throw out what is too slow.",
        "b": "it takes 62 % of the time, and half was allowed: over the budget.",
        "d": "you chose by the test digits. Then nothing is left that could tell you honestly how good your choice is: "
        "choose by `valid`.",
        "e": "that is the fastest. Any trial within the budget is fast enough: among those, take the most accurate.",
    }
    if found != "c":
        return messages.get(found, f"there is no trial {found!r}.")
    if call(answer, [dict(t) for t in TRIALS], 0.62) != "b":
        return "with a limit of exactly 0.62, the trial that takes 0.62 is within it: use `<=`."
    return None


LAYERS = {"conv1": (0.40, 0.5), "conv2": (0.30, 3.0), "fc1": (0.01, 0.02), "conv4": (0.90, 4.0)}  # rise, saved


def check_modify(answer: Any) -> str | None:
    """The least rise of the loss for each millisecond saved."""
    rise = {name: r for name, (r, _) in LAYERS.items()}
    saved = {name: s for name, (_, s) in LAYERS.items()}
    found = call(answer, dict(rise), dict(saved))
    messages = {
        "fc1": "that is the gentlest cut, and it saves next to nothing: you would need a hundred of them. Divide by "
        "what each one saves.",
        "conv4": "that one saves most, and it costs most, too. Look at the price of a millisecond.",
        "conv1": "that is the dearest millisecond of all: you turned the fraction, or the order, around.",
    }
    if found != "conv2":
        return messages.get(str(found), f"return a layer's name, one of {', '.join(LAYERS)}.")
    other = call(answer, {"x": 1.0, "y": 5.0, "z": 9.5}, {"x": 1.0, "y": 4.0, "z": 10.0})
    if other != "z":
        return (
            "with other numbers, x: 1.0 for 1 ms, y: 5.0 for 4 ms, z: 9.5 for 10 ms, the cheapest millisecond is z's. "
            "A difference is not a price: divide."
        )
    return None


class Bench:
    """A machine of our own making: the time of a network of which a share is kept, and how often it was asked."""

    def __init__(self, floor: float, power: float):
        self.floor, self.power, self.asked = floor, power, 0

    def truth(self, share: float) -> float:
        """What a measurement gives."""
        return self.floor + (1 - self.floor) * share**self.power

    def __call__(self, share: float) -> float:
        """Measure, and count."""
        self.asked += 1
        return self.truth(share)


ASKED = 20  # measurements that are allowed: each takes a second on a real machine


def check_make(answer: Any) -> str | None:
    """The largest share within a measured limit, by halving."""
    for floor, power, limit in ((0.1, 2.0, 0.5), (0.25, 1.2, 0.6), (0.02, 3.0, 0.3)):
        bench = Bench(floor, power)
        found = call(answer, bench, limit)
        message = _settled(found, bench, limit)
        if message:
            return message
    return _below_the_floor(answer)


def _settled(found: Any, bench: Bench, limit: float) -> str | None:
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 <= found <= 1:
        return f"return a share between 0 and 1; this is {found!r}."
    if bench.asked == 0:
        return "you never called `measure`: a prediction is no measurement."
    if bench.asked > ASKED:
        return f"you measured {bench.asked} times, and each takes a second: {ASKED} are allowed. Halve the interval."
    took = bench.truth(float(found))
    if took > limit + 1e-9:
        return (
            f"measured, your share takes {took:.3f} of the time, and {limit} was allowed: over the budget. Of the "
            "interval's two ends, return the one that is known to be within."
        )
    if bench.truth(min(1.0, float(found) + 0.01)) <= limit:
        return (
            f"your share takes only {took:.3f}, of {limit} allowed: you cut away more than you had "
            "to. Go on until the interval is narrower than 0.01."
        )
    return None


def _below_the_floor(answer: Any) -> str | None:
    """A limit that no share can meet."""
    bench = Bench(0.6, 1.0)
    try:
        found = answer(bench, 0.5)
    except Exception as error:
        return f"with a limit below the floor your function stops with {type(error).__name__}: return None there."
    if found is not None:
        return (
            "there is a floor: even a network of which nothing is left takes 0.6 here, and 0.5 was asked for. Measure "
            "a share of 0 first, and return None where the goal is out of reach."
        )
    return None


EXERCISES = (
    Exercise(
        id="16-1",
        title="Read a report",
        kind="read",
        difficulty=1,
        minutes=5,
        task=(
            "A search tried five networks. Each is a dict with its `name`, its `time` as a share of the dense "
            "network's, and its accuracy on the `valid` and the `test` digits.\n\n"
            "Write `choose(trials, limit)`: the name of the one you would take home, if it may take `limit` at most."
        ),
        answer="choose",
        stub="def choose(trials, limit):\n    return ...  # the name of one trial",
        hints=(
            "Two steps: who is allowed, and who of those is best?",
            "Best by which digits? The ones you may look at as often as you like.",
            '`within = [t for t in trials if t["time"] <= limit]`, then `max(within, key=...)["name"]`.',
        ),
        solution=(
            "def choose(trials, limit):\n"
            '    within = [t for t in trials if t["time"] <= limit]\n'
            '    return max(within, key=lambda t: t["valid"])["name"]'
        ),
        check=check_read,
        wrong=(
            WrongAnswer(
                'def choose(trials, limit):\n    return max(trials, key=lambda t: t["valid"])["name"]', "too slow"
            ),
            WrongAnswer(
                'def choose(trials, limit):\n    return min(trials, key=lambda t: t["time"])["name"]', "the fastest"
            ),
            WrongAnswer(
                "def choose(trials, limit):\n"
                '    within = [t for t in trials if t["time"] <= limit]\n'
                '    return max(within, key=lambda t: t["test"])["name"]',
                "by the test digits",
            ),
            WrongAnswer(
                "def choose(trials, limit):\n"
                '    within = [t for t in trials if t["time"] < limit]\n'
                '    return max(within, key=lambda t: t["valid"])["name"]',
                "use `<=`",
            ),
        ),
        praise="Budget first, then validation, and the test digits once, at the very end.",
    ),
    Exercise(
        id="16-2",
        title="The price of a millisecond",
        kind="modify",
        difficulty=2,
        minutes=6,
        task=(
            "The search cuts one layer at a time. `rise` says by how much the loss rises if a layer is cut a little "
            "further, `saved` how many milliseconds that saves; both are dicts by the layer's name.\n\n"
            "It used to take the gentlest cut. Change it to take the one with the *cheapest millisecond*, and return "
            "the layer's name."
        ),
        answer="next_cut",
        stub="def next_cut(rise, saved):\n    return ...  # it was min(rise, key=rise.get)",
        hints=(
            "A cut that costs nothing and saves nothing brings you no nearer.",
            "Price: what you pay, for each millisecond you get.",
            "`min(rise, key=lambda layer: rise[layer] / saved[layer])`",
        ),
        solution="def next_cut(rise, saved):\n    return min(rise, key=lambda layer: rise[layer] / saved[layer])",
        check=check_modify,
        wrong=(
            WrongAnswer("def next_cut(rise, saved):\n    return min(rise, key=rise.get)", "gentlest cut"),
            WrongAnswer("def next_cut(rise, saved):\n    return max(saved, key=saved.get)", "saves most"),
            WrongAnswer(
                "def next_cut(rise, saved):\n    return max(rise, key=lambda x: rise[x] / saved[x])",
                "turned the fraction",
            ),
            WrongAnswer(
                "def next_cut(rise, saved):\n"
                "    return max(rise, key=lambda x: saved[x] - 1.3 * rise[x] - 0.3 * (saved[x] > 3.5))",
                "difference is not a price",
            ),
        ),
        praise="This one line is how `fit_budget` spends your accuracy.",
    ),
    Exercise(
        id="16-3",
        title="Meet a budget that is measured",
        kind="make",
        difficulty=3,
        minutes=12,
        task=(
            "`measure(share)` builds a network of which that share of every layer is kept (0 to 1), times it, and "
            "returns its time as a share of the dense network's. More is never faster. How time depends on the share "
            "nobody knows.\n\n"
            "Write `settle(measure, limit)`: the *largest* share whose measured time is at most `limit`, to within "
            f"0.01. Measure at most {ASKED} times. If even a share of 0 takes longer than `limit`, return None."
        ),
        answer="settle",
        stub="def settle(measure, limit):\n    return ...  # the largest share within the limit, or None",
        hints=(
            "Start with two ends: 0, which must be within the limit, and 1.",
            "Measure in the middle. Within the limit: the low end moves up. Over it: the high end moves down.",
            "Stop when the ends are less than 0.01 apart, and return the low one: it is known to be within.",
        ),
        solution=(
            "def settle(measure, limit):\n"
            "    low, high = 0.0, 1.0\n"
            "    if measure(low) > limit:\n"
            "        return None\n"
            "    while high - low > 0.005:\n"
            "        middle = (low + high) / 2\n"
            "        if measure(middle) <= limit:\n"
            "            low = middle\n"
            "        else:\n"
            "            high = middle\n"
            "    return low"
        ),
        check=check_make,
        wrong=(
            WrongAnswer("def settle(measure, limit):\n    return limit", "a prediction is no measurement"),
            WrongAnswer("def settle(measure, limit):\n    measure(limit)\n    return limit", "more than you had to"),
            WrongAnswer(
                "def settle(measure, limit):\n"
                "    share = 1.0\n"
                "    while measure(share) > limit:\n"
                "        share -= 0.005\n"
                "    return share",
                "Halve the interval",
            ),
            WrongAnswer(
                "def settle(measure, limit):\n"
                "    low, high = 0.0, 1.0\n"
                "    while high - low > 0.005:\n"
                "        middle = (low + high) / 2\n"
                "        low, high = (middle, high) if measure(middle) <= limit else (low, middle)\n"
                "    return high",
                "known to be within",
            ),
            WrongAnswer(
                "def settle(measure, limit):\n"
                "    low, high = 0.0, 1.0\n"
                "    while high - low > 0.005:\n"
                "        middle = (low + high) / 2\n"
                "        low, high = (middle, high) if measure(middle) <= limit else (low, middle)\n"
                "    return low",
                "there is a floor",
            ),
        ),
        praise="Predict, measure, correct: your search keeps its word on any machine.",
    ),
)
