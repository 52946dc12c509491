"""The site and the API reference: complete, and without a link that leads nowhere."""

import inspect
import json
import re
from html.parser import HTMLParser

import pytest

import prunelab as pl
from prunelab.lab.workshop import course, pages, reference, site


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.to, self.levels, self.bare = [], [], 0

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "a" and given.get("href"):
            self.to.append(given["href"])
        if re.fullmatch(r"h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag == "img" and not given.get("alt"):
            self.bare += 1
        if tag in ("script", "link", "img"):
            assert not (given.get("src") or given.get("href") or "").startswith("http"), (
                "a page fetches from the network"
            )


def read(text):
    parser = Links()
    parser.feed(text)
    return parser


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return site.build(tmp_path_factory.mktemp("site"))


@pytest.mark.slow
def test_each_notebook_and_each_public_module_has_its_page(built):
    names = {p.name for p in built}
    assert {"index.html", "reference.html"} < names
    assert {f"{p.stem}.html" for p in course.notebooks()} < names
    assert {f"{m.__name__}.html" for m in reference.modules()} < names


def test_no_link_between_pages_is_dead(built):
    for path in built:
        for to in read(path.read_text()).to:
            if not to.startswith(("http", "#", "data:")):
                assert (path.parent / to.partition("#")[0]).exists(), f"{path.name} links to {to}"


def test_the_first_page_and_the_map_of_the_course_lead_to_every_notebook(built):
    names = [path.stem for path in course.notebooks()]
    first = (built[0].parent / "index.html").read_text()
    assert 'class="pl-drawing"' in first
    for text, every in ((first, names), ((built[0].parent / f"{names[0]}.html").read_text(), names[1:])):
        rows = re.findall(r'<td[^>]*>(\d\d)</td>\s*<td[^>]*><a href="(\w+)\.html">', text)
        assert rows == [(name[:2], name) for name in every]


def test_headings_are_in_order_and_every_picture_is_described(built):
    for path in built:
        found = read(path.read_text())
        assert found.levels.count(1) == 1, path.name
        assert found.levels[0] == 1
        assert all(b - a <= 1 for a, b in zip(found.levels, found.levels[1:], strict=False)), path.name
        assert found.bare == 0


def test_every_public_function_is_in_the_reference(built):
    folder = built[0].parent
    for module in reference.modules():
        text = (folder / f"{module.__name__}.html").read_text()
        found = reference.public(module)
        assert found
        for name, thing in found.items():
            assert f'id="{name}"' in text
            assert inspect.getdoc(thing), f"{module.__name__}.{name} has no docstring"


def test_the_search_knows_each_page_and_where_its_parts_are(built):
    folder = built[0].parent
    index = json.loads((folder / "search.js").read_text().removeprefix("window.prunelabPages = ").rstrip(";\n"))
    assert {to.partition("#")[0] for _, _, to, _ in index} == {p.name for p in built}
    for title, heading, to, text in index:
        assert title
        assert heading
        name, _, place = to.partition("#")
        assert not place or f'id="{place}"' in (folder / name).read_text(), to
        assert "{" not in heading
        assert "base64" not in text
    (found,) = [text for _, heading, to, text in index if to == "prunelab.html#allocate"]
    assert "allocate" in found


def test_the_glossary_has_every_word_of_the_recaps_once():
    notebooks = {path.stem: course.read(path) for path in course.notebooks()}
    words = re.findall(r"^- \*\*(.+?)\*\*: .+ \(\[\d\d\]", site.glossary(notebooks), re.M)
    assert {"Mask", "Sparsity", "Perplexity"} <= set(words)
    assert len(words) == len(set(words)) > 50
    assert words == sorted(words, key=str.casefold)


def test_the_verbs_are_there():
    assert {"prune", "apply", "bake", "measure", "allocate", "Recipe"} <= set(reference.public(pl))


def test_a_reference_is_the_same_tomorrow():
    assert "loss: Loss = cross_entropy" in reference.page(pl)
    assert not any(re.search(r"at 0x[0-9a-f]+", reference.page(module)) for module in reference.modules())


def test_a_docstring_becomes_markdown():
    text = reference.prose("One line.\n\n>>> f(1)\n2\n\n  a  b\n  c  d\n\nThe end.")
    assert text == "One line.\n\n```python\n>>> f(1)\n2\n```\n\n```\n  a  b\n  c  d\n```\n\nThe end."


def test_a_page_escapes_its_title_and_marks_where_it_is():
    text = pages.markdown("# <x>", "a < b", {"a": "a.html", "b": "b.html"}, "b.html")
    assert "<title>a &lt; b</title>" in text
    assert '<a href="b.html" aria-current=page>b</a>' in text
    assert text.count("aria-current=page") == 1


def test_a_formula_becomes_a_picture_that_is_described_by_its_source():
    text = pages.formulas(r"Let $a_1 < b$, and `$x$`, and 5 $ or 6 $." + "\n\n" + r"$$\frac{\partial L}{\partial S}$$")
    assert text.count("data:image/svg+xml") == 2
    assert 'alt="a_1 &lt; b"' in text
    assert r'alt="\frac{\partial L}{\partial S}"' in text
    assert "`$x$`, and 5 $ or 6 $." in text
    assert pages.formulas(r"$\unknowncommand{x}$") == r"<code>\unknowncommand{x}</code>"
