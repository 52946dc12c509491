"""The rules of the house over every notebook, and each rule shown able to fail."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from prunelab.lab.author import publish, rules
from prunelab.lab.learn import claim, exercise
from prunelab.lab.show.display import WIDGET_VIEW

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
STUBS = {e.id: e.stub for e in exercise.registry().values()}
ALT = "Accuracy falls slowly, then at once."


@pytest.mark.parametrize("path", NOTEBOOKS or [pytest.param(None, marks=pytest.mark.skip("no notebook yet"))],
                         ids=[p.stem for p in NOTEBOOKS] or ["none"])  # fmt: skip
class TestHouse:
    @pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
    def test_the_notebook_keeps_the_rule(self, path, rule):
        problems = rule(nbformat.read(path, as_version=4))
        assert not problems, "\n".join([rule.__doc__, *problems])

    def test_each_claim_fails_on_its_wrong_side(self, path):
        for call in rules.calls(nbformat.read(path, as_version=4), "claim"):
            bound = claim.bound({k.arg: rules.ast.literal_eval(k.value) for k in call.keywords})
            for value in rules.wrong_values(bound):
                with pytest.raises(claim.ClaimError):
                    claim.claim("Wrong side.", value, **{bound.kind: bound.limit})

    def test_its_file_is_small_enough_to_read_anywhere(self, path):
        assert path.stat().st_size <= 1_500_000, "thousands of points are drawn with rasterized=True"

    def test_it_starts_under_its_own_number_and_is_valid(self, path):
        nb = nbformat.read(path, as_version=4)
        nbformat.validate(nb)
        assert f'lab.start("{path.stem[:2]}")' in rules.code_cells(nb)[0].source


def test_there_is_one_notebook_a_number():
    assert len({p.stem[:2] for p in NOTEBOOKS}) == len(NOTEBOOKS)


# A small notebook that keeps every rule, and one way to break each


def picture(alt=ALT):
    html = f'<img alt="{alt}" src="data:image/png;base64,0xabcdefabcdef">'
    return new_output("display_data", {"text/html": html, "image/png": "YWJj", "text/plain": alt})


def text(line="fine"):
    return new_output("display_data", {"text/plain": line})


def good():
    """A notebook as the house wants it."""
    cells = [
        "# Is this a good notebook?\n\n**5 minutes** · 8 s of CPU · needs: 00 · unlocks: 02",
        ('from prunelab import lab\n\nlab.start("01")', text()),
        "## Predict\n\nIn 2015 someone asked (notebook 00, exercise 00-1, 1506.02626 § 3.1).",
        ('guess = lab.predict("01-x", "How many?", options=["few", "many"])', text()),
        f"## Run\n\n1. Half of the 1,234 weights on 3×3 kernels, 2:4, `0.7` and $x^2$.\n\n*Figure: {ALT}*",
        ('lab.claim("Half of 1234 weights.", 617, equals=617)', text()),
        ('lab.check_numbers("01", globals())', text("1 number: all hold.")),
        (f'with lab.figure(alt="{ALT}") as (fig, ax):\n    ax.plot([1, 2])', picture()),
        "## Explain\n\n*Figure: The guess beside the result, and so on.*",
        ('lab.reveal(guess, "many", {"few": "It feels safe."})', picture("The guess beside the result for: x.")),
        "## Explore\n\n*Figure: The share of zeros grows.*",
        (
            'lab.explorer(lambda ax, s: ax.plot([s]), {"s": [0, 1]}, alt="The share of zeros.")',
            picture("The share of zeros."),
        ),
        "## Exercise\n\n### One\n\nRead.",
        (STUBS["01-1"] + '\nlab.check("01-1", survivors)', text()),
        (STUBS["01-3"] + '\n\n\nlab.check("01-3", magnitude_mask)', text()),
        "## Scoreboard",
        ('lab.scoreboard.show("01")', text()),
        "## Recap\n\nGlossary: mask. Han 2015 (arXiv 1506.02626, § 3). The next notebook: 02.",
    ]
    nb = new_notebook()
    count = 0
    for cell in cells:
        if isinstance(cell, str):
            nb.cells.append(new_markdown_cell(cell))
            continue
        count += 1
        source, *outs = cell
        nb.cells.append(new_code_cell(source, execution_count=count, outputs=outs))
    return nb


def cell(nb, part):
    """The cell whose source holds a piece of text."""
    return next(c for c in nb.cells if part in c.source)


def replaced(old, new):
    """A change: one piece of source for another."""

    def change(nb):
        found = cell(nb, old)
        found.source = found.source.replace(old, new)

    return change


def added_code(source, *outs):
    """A change: a further code cell at the end of Run, executed in its turn."""

    def change(nb):
        place = nb.cells.index(cell(nb, "## Explain"))
        nb.cells.insert(place, new_code_cell(source, outputs=list(outs)))
        for n, code in enumerate(rules.code_cells(nb), 1):
            code.execution_count = n

    return change


def added_prose(source):
    """A change: further prose in Run."""
    return replaced("1. Half", f"{source}\n\n1. Half")


def output(data):
    """A change: another output under the claim."""
    return lambda nb: cell(nb, "lab.claim").outputs.append(new_output("display_data", data))


def _not_run(nb):
    cell(nb, "lab.claim").execution_count = None


def _error(nb):
    cell(nb, "lab.claim").outputs = [new_output("error", ename="E", evalue="e", traceback=[])]


def _stderr(nb):
    cell(nb, "lab.claim").outputs = [new_output("stream", name="stderr", text="Warning")]


def _other_times(nb):
    cell(nb, "lab.check_numbers").outputs = [text("2 numbers: 1 hold. Times are your machine's own.")]


def _state(nb):
    nb.metadata["widgets"] = {}


def _cells(number, **metadata):
    def change(nb):
        for _ in range(number):
            added_code("pass")(nb)
            place = nb.cells.index(cell(nb, "## Explain")) - 1
            nb.cells[place].metadata.update(metadata)

    return change


def _second_exercise_gone(nb):
    nb.cells.remove(cell(nb, '"01-3"'))
    for n, code in enumerate(rules.code_cells(nb), 1):
        code.execution_count = n


BROKEN = [
    (rules.executed, _not_run, "execution counts"),
    (rules.executed, lambda nb: cell(nb, "lab.claim").update(execution_count=7), "execution counts"),
    (rules.clean_outputs, _error, "an error"),
    (rules.clean_outputs, _stderr, "stderr"),
    (rules.no_widget_state, _state, "metadata.widgets"),
    (rules.no_widget_state, output({WIDGET_VIEW: {"model_id": "x"}, "text/plain": "x"}), "a view of a widget"),
    (rules.stable_outputs, output({"text/plain": "<object at 0x7f00deadbeef>"}), "0x7f00deadbeef"),
    (rules.stable_outputs, output({"text/plain": "in /home/ada/x"}), "/home/ada"),
    (rules.stable_outputs, output({"text/html": "<b>x</b>"}), "without a line of text/plain"),
    (rules.arc, replaced("# Is this a good notebook?", "# A good notebook"), "does not ask"),
    (rules.arc, replaced("# Is this a good notebook?", "No title"), "0 titles"),
    (rules.arc, replaced("## Recap", "# Recap?"), "2 titles"),
    (rules.arc, replaced("## Explain", "## Why"), "the sections are"),
    (rules.arc, replaced("## Explain", "### Explain"), "the sections are"),
    (rules.strip, replaced("**5 minutes** · ", ""), "minutes"),
    (rules.strip, replaced("8 s of CPU · ", ""), "seconds of CPU"),
    (rules.strip, replaced(" · needs: 00 · unlocks: 02", ""), "what it needs, what it unlocks"),
    (rules.sections, replaced("lab.predict", "print"), "Predict"),
    (rules.sections, replaced("lab.explorer", "print"), "Explore"),
    (rules.sections, added_code('lab.reveal(guess, "many")'), "no reveal first"),
    (rules.sections, _second_exercise_gone, "two or three"),
    (rules.cell_limits, _cells(18), "code cells; at most 18"),
    (rules.cell_limits, added_code("x = 1\n" * 17), "17 lines"),
    (rules.cell_limits, lambda nb: [added_code("x = 1\n" * 13)(nb) for _ in range(2)], "13 lines"),
    (rules.ignored_share, _cells(3, tags=["nbval-ignore-output"]), "not compared"),
    (rules.ignored_share, added_code("# NBVAL_IGNORE_OUTPUT because\nx = 1"), "use a tag"),
    (rules.first_cell, replaced('lab.start("01")', 'print("01")'), "must be imports"),
    (rules.first_cell, replaced('lab.start("01")', 'lab.start("01")\nx = 1'), "must be imports"),
    (rules.numbers, added_prose("Accuracy is 94.4 %."), "94.4"),
    (rules.numbers, added_prose("| what? | 12 kB |"), "12"),
    (rules.numbers, added_prose("It is 12 times smaller."), "12"),
    (rules.numbers, added_prose("There were 1235 of them."), "1235"),
    (rules.numbers, replaced("Half of 1234 weights.", "Half of the weights."), "1234"),
    (rules.claims_can_fail, added_code('lab.claim("It works.", 1)'), "exactly one"),
    (rules.claims_can_fail, added_code('lab.claim("It works.", 1, at_least=x)'), "not one literal"),
    (rules.claims_can_fail, added_code('lab.claim("It works.", 1, at_least=-1e999)'), "finite"),
    (rules.claims_can_fail, added_code('lab.claim("It works.", 1, at_least=1, at_most=2)'), "exactly one"),
    (rules.claims_can_fail, added_code('lab.claim("It works.", 1, between=(0, 1))'), "whole range"),
    (rules.claims_can_fail, added_code('lab.claim("It works.", 1, at_least=0.0)'), "whole range"),
    (rules.claims_can_fail, added_code('lab.claim("It works.", 1, **kind)'), "not one literal"),
    (rules.listed_numbers, replaced("lab.check_numbers", "print"), "lists 1 numbers, and 0 cells"),
    (rules.listed_numbers, _other_times, "contradicts a number"),
    (rules.listed_numbers, added_code('lab.check_numbers("01", globals())'), "lists 1 numbers, and 2 cells"),
    (rules.pictures, output({"image/png": "YWJj", "text/plain": "<Figure>"}), "without an alt"),
    (rules.pictures, lambda nb: cell(nb, "lab.figure").outputs.append(picture("")), "without an alt"),
    (rules.pictures, lambda nb: cell(nb, "lab.figure").outputs.append(picture("Another curve is flat.")), "*Figure"),
    (rules.pictures, replaced("*Figure: Accuracy", "Figure: Accuracy"), "*Figure"),
    (rules.no_definitions, added_code("def helper():\n    pass"), "helper"),
    (rules.no_definitions, added_code("class Helper:\n    pass"), "Helper"),
    (rules.self_contained, added_code("%matplotlib inline"), "magic"),
    (rules.self_contained, added_code("!ls"), "shell line"),
    (rules.self_contained, added_code('x = "https://example.org"'), "a URL"),
    (rules.self_contained, added_code('get_ipython().run_line_magic("pip", "install x")'), "an install"),
    (rules.compared_widgets, added_code("interact(f, x=3)"), "interact"),
    (rules.compared_widgets, added_code("out = widgets.Output()"), "Output"),
    (rules.compared_widgets, added_code("clear_output(wait=True)"), "clear_output"),
    (rules.known_exercises, replaced('"01-1"', '"77-1"'), "toml holds"),
    (rules.known_exercises, replaced("a list of weights", "your list"), "does not hold the stub"),
    (rules.recap, replaced("Glossary", "Words"), "glossary"),
    (rules.recap, replaced("02626, § 3)", "02626, page 3)"), "§"),
    (rules.recap, replaced("The next notebook", "Then"), "next"),
]


@pytest.fixture
def one_number(monkeypatch):
    """A lesson that lists one number of its prose."""
    number = claim.Number("It has 7 parts.", "parts", claim.Bound("equals", 7))
    monkeypatch.setattr(claim, "numbers_of", lambda _: (number,))


@pytest.mark.parametrize(
    ("says", "kind", "limit", "kept"),
    [
        ("It reads 94 %.", "between", (92, 96), True),
        ("It reads 94 %.", "between", (0.92, 0.96), True),
        ("It reads 94 %.", "between", (80, 90), False),
        ("It lost 2 points of 95.", "between", (-0.03, -0.01), True),
        ("Twice as fast.", "at_least", 1.5, True),  # in words: nothing to compare
        ("It has 7 parts.", "equals", 8, False),
    ],
)
def test_what_a_clause_states_keeps_its_own_bound(says, kind, limit, kept):
    assert rules.stated(claim.Number(says, "x", claim.Bound(kind, limit))) is kept


@pytest.mark.usefixtures("one_number")
def test_the_good_notebook_has_no_problem():
    assert rules.problems(good()) == []


@pytest.mark.usefixtures("one_number")
@pytest.mark.parametrize(("rule", "change", "words"), BROKEN, ids=lambda x: getattr(x, "__name__", None))
def test_the_rule_can_fail(rule, change, words):
    nb = good()
    change(nb)
    found = rule(nb)
    assert any(words in problem for problem in found), found


def test_every_rule_is_shown_able_to_fail():
    assert {rule for rule, *_ in BROKEN} == set(rules.RULES)


@pytest.mark.parametrize(
    "prose",
    [
        "Han et al. 2015 (arXiv 1506.02626, § 3.1)",
        "see notebook 04 and [the next](02_structure.ipynb), exercise 01-2",
        "a CIFAR-10 net in float32 with L1 and L2 norms, 3×3 and 16 x 16, 2:4",
        "`0.9` and $10^{-3}$ and\n```\n0.5\n```\n",
        "1. first\n2. second",
        "| 02 | Why isn't a 90 %-sparse network faster? | structure |",
        "| 12 | How many heads does attention need? | Transformers |",
        "unlocks notebooks 09, 12, 13 and 16",
        "Table 2, Fig. 3a and Section 4.2 of it",
        "Half of the 1234 weights, or 1,234",
    ],
)
def test_what_needs_no_claim(prose):
    nb = good()
    added_prose(prose)(nb)
    assert rules.numbers(nb) == []


def test_publishing_takes_out_what_no_kernel_knows_any_more():
    nb = good()
    output({WIDGET_VIEW: {"model_id": "x"}, "text/plain": "kept"})(nb)
    output({WIDGET_VIEW: {"model_id": "y"}})(nb)
    nb.metadata["widgets"] = {}
    before = len(cell(nb, "lab.claim").outputs)
    publish.strip_views(nb)
    assert rules.no_widget_state(nb) == []
    assert len(cell(nb, "lab.claim").outputs) == before - 1


def test_teachers_can_run_the_rules(tmp_path, capsys):
    nbformat.write(good(), tmp_path / "mine.ipynb")
    assert rules.main([str(tmp_path / "mine.ipynb")]) == 0
    nb = good()
    added_prose("99 problems")(nb)
    nbformat.write(nb, tmp_path / "mine.ipynb")
    assert rules.main([str(tmp_path / "mine.ipynb")]) == 1
    assert "numbers: '99' is backed by no lab.claim" in capsys.readouterr().out


def test_what_a_notebook_unlocks_needs_it():
    """The strips under the titles tell one story: B needs A where A unlocks B, and nowhere else."""
    needs, unlocks = set(), set()
    for path in NOTEBOOKS:
        title = nbformat.read(path, as_version=4).cells[0].source
        needed, unlocked = re.search(r"needs ([^·]*)· unlocks (.*)\*\*", title).groups()
        needs |= {(other, path.stem[:2]) for other in re.findall(r"\b\d\d\b", needed)}
        unlocks |= {(path.stem[:2], other) for other in re.findall(r"\b\d\d\b", unlocked)}
    assert needs == unlocks
