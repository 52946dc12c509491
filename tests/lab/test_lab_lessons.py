import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from prunelab.lab.learn import exercise
from prunelab.lab.workshop import contents, course, notebook

NOTEBOOKS = {p.stem: course.read(p) for p in course.notebooks()}


def shown(text):
    return new_output("display_data", {"text/plain": text})


def test_a_question_is_read_with_its_result_and_reasons():
    nb = new_notebook()
    asks = (
        'a = lab.predict(\n    "12-x", "How many " "[of 3]?", options=["few", "many"])\n'
        'b = lab.predict("12-y", "When?", slider=(0, 1, 0.1, "%"))'
    )
    tells = [
        "The guess beside the result for: How many [of 3]? The result: few.\n- “many”: it sounds: much.",
        "The guess beside the result for: When? The result: ≈ 93.6 %.\n- Late is late.",
    ]
    outputs = [shown("Your prediction: How many [of 3]? [few / many]"), shown("Your prediction: When? [0 % to 100 %]")]
    nb.cells = [
        new_code_cell(asks, outputs=outputs),
        new_code_cell("", outputs=[]),
        new_code_cell("x", outputs=[shown(t) for t in tells]),
    ]
    nbformat.validate(nb)
    assert contents.questions(nb) == [
        contents.Question("12-x", "How many [of 3]?", ("few", "many"), None, "few", {"many": "it sounds: much."}),
        contents.Question("12-y", "When?", (), (0, 1, 0.1, "%"), "≈ 93.6 %", {"": "Late is late."}),
    ]


@pytest.mark.parametrize("name", NOTEBOOKS)
class TestEveryNotebook:
    def test_all_its_questions_are_read(self, name):
        nb = NOTEBOOKS[name]
        asked = contents.questions(nb)
        assert len(asked) == len(list(notebook.calls(nb, "predict"))) > 0
        assert all(q.id.startswith(name[:2]) and q.text and q.result and any(q.wrong.values()) for q in asked)
        for q in asked:
            assert (q.slider is None) == bool(q.options)
            assert not q.options or set(q.wrong) < set(q.options)
            assert not q.options or q.result in q.options

    def test_each_of_its_exercises_is_found_where_its_stub_is(self, name):
        found = {asked.id: cell for cell, asked in contents.checked(NOTEBOOKS[name])}
        assert sorted(found) == sorted(id for id in exercise.registry() if id.startswith(name[:2]))
        assert all(exercise.get(id).stub in cell.source for id, cell in found.items())

    def test_it_has_a_title_a_strip_and_minutes(self, name):
        nb = NOTEBOOKS[name]
        assert contents.title(nb).endswith("?")
        assert "minutes" in contents.strip(nb)
        assert 5 <= contents.minutes(nb) <= 120
        assert any(notebook.calls_in(cell, "explorer", "drawing") for cell in notebook.code_cells(nb)), "no panel"
