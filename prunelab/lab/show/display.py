"""How anything of the lab reaches the page: one output in several forms, of which each viewer takes the best it can.

Notebooks, code hosts, nbconvert and print take the HTML or the picture; a terminal and strict nbval take the line of
text. Whatever depends on the learner or the machine stands between the marks of `yours`, which nbval does not compare.
A widget needs its kernel: only what calls Python is one, in an output of its own below the HTML that says it all.
"""

from __future__ import annotations

import base64
import functools
import re
import sys
import uuid
import warnings
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from IPython import get_ipython
from IPython.display import display
from pygments.lexers.python import PythonLexer
from pygments.token import Token

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

# The notebook's own colours where it has a theme, readable ones where it has not (a code host, a print).
INK = "var(--jp-ui-font-color1, inherit)"
GOOD = "var(--jp-success-color1, #2e7d32)"
WARN = "var(--jp-warn-color1, #b26a00)"
LINE = "var(--jp-border-color1, #9e9e9e)"
WIDTH = "54em"  # no line of prose longer than a reader likes


def in_kernel() -> bool:
    """Whether a notebook's kernel runs this, and no terminal."""
    return hasattr(get_ipython(), "kernel")  # type: ignore[no-untyped-call, unused-ignore]


def emit(data: dict[str, Any], metadata: dict[str, Any], **how: Any) -> None:
    """Publish one bundle in a kernel; print its text anywhere else. `how`: its `display_id`, to update it."""
    if in_kernel():
        display(data, metadata=metadata, raw=True, **how)  # type: ignore[no-untyped-call, unused-ignore]
    elif "text/plain" in data and "update" not in how:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # a console that knows no stars gets "?"
        print(data["text/plain"].encode(encoding, "replace").decode(encoding))


def show(
    text: str | None = None,
    *,
    html: str | None = None,
    png: bytes | None = None,
    alt: str = "",
    widget: widgets.Widget | None = None,
    **how: Any,
) -> None:
    """One output: `text` for every viewer, and the richer forms for those that can; `how` as `emit` takes it."""
    data = {
        WIDGET_VIEW: widget and {"version_major": 2, "version_minor": 0, "model_id": widget.model_id},
        "text/html": html,
        "image/png": png and base64.b64encode(png).decode(),
        "text/plain": text,
    }
    found = {mime: form for mime, form in data.items() if form is not None}
    emit(found, {"image/png": {"alt": alt}} if png else {}, **how)


def say(*paragraphs: str, edge: str = LINE, own: Sequence[str] = ()) -> None:
    """Sentences in a calm box; below them the learner's `own`, which nbval does not compare."""
    html = box("".join(map(prose, paragraphs)) + yours("".join(map(prose, own))) * bool(own), edge)
    show("\n".join(paragraphs if in_kernel() else [*paragraphs, *own]), html=html)


# What the first cell, and each that asks, brings to the page. Once the kernel is gone, JupyterLab writes an error in a
# widget's place, or, where it never reached the kernel, that it loads: instead, below a question stands what can be
# done, and of a progress bar nothing. A widget's control gets its label as its name. And the keys that a notebook takes
# for itself reach what is chosen or unfolded; what listens to keys itself gets a mark, which Notebook 7 looks for, on
# the focused element alone, before all others.
AGAIN = "Run this cell to answer."
_GONE = ".jp-OutputArea-output.lm-Panel:not(:has(*))"
PAGE = (
    f"<style data-pl-page>{_GONE} {{font-size: 0; visibility: hidden}} "
    f".jp-OutputArea-child:has([data-pl-page]) + * > {_GONE}::after {{content: 'Run this cell again.'; font-style: "
    "italic; font-size: var(--jp-content-font-size1, 14px); visibility: visible; animation: pl-late 2s} "
    "@keyframes pl-late {from, to {visibility: hidden}}</style>"  # a widget may only be late
    "<script>window.prunelabKeys = window.prunelabKeys || (addEventListener('keydown', event => "
    "{const at = event.target; if (at.closest?.('.prunelab-keys, summary')) event.stopPropagation(); "
    "else if (at.closest?.('.pl-explorer, .jupyter-widgets [role=slider]')) at.dataset.lmSuppressShortcuts = 'true'}"
    ", true), addEventListener('focusin', event => {const control = event.target.closest?.('.widget-radio-box, "
    ".widget-slider [role=slider]'); if (!control) return; control.role ||= 'radiogroup'; const label = control."
    "closest('.widget-radio, .widget-slider').querySelector('.widget-label'); control.ariaLabel = [label.textContent, "
    "label.title].filter(said => said && said !== 'null').join(': ')}), true)</script>"
)


def live(text: str, html: str, widget: widgets.Widget) -> Callable[[str], None]:
    """What needs the kernel: all of it in words that last, and below them, in an output of its own, the widget.

    Returns a function that puts more HTML, the learner's own, below the words; it lasts as they do.
    """
    id = uuid.uuid4().hex
    show(text, html=html + PAGE, display_id=id)
    show(AGAIN, html=prose(f"*{AGAIN}*"), widget=widget)
    return lambda more: show(text, html=html + yours(more) + PAGE, display_id=id, update=True)


def yours(html: str) -> str:
    """HTML that is true of this learner or machine alone: shown and saved like all else, and not compared by nbval."""
    return f"<!--yours-->{html}<!--/yours-->"


def notice(text: str) -> None:
    """Say something that is true of this machine alone: shown in the notebook, and not compared by nbval."""
    if not in_kernel():
        warnings.warn(text, stacklevel=3)
        return
    show(html=yours(box(f"<strong>Please note.</strong> {escape(text)}", WARN)))


def panel_html(html: str = "") -> widgets.HTML:
    """A widget that holds HTML; setting its `value` is the one way the lab changes what is on the page."""
    return widgets.HTML(html, layout=widgets.Layout(width="auto", margin="0"))


def box(inner: str, edge: str = LINE) -> str:
    """A calm box: a coloured edge, never colour alone to say something."""
    return (
        f'<div style="border-left: 4px solid {edge}; padding: 0.3em 0.8em; margin: 0.3em 0; '
        f"max-width: {WIDTH}; line-height: 1.45; color: {INK}; "
        f'font-size: var(--jp-content-font-size1, inherit)">{inner}</div>'
    )


def prose(text: str) -> str:
    """Plain text as HTML: escaped, `code` in backticks, *words* in stars, an empty line between paragraphs."""
    parts = escape(text.strip(), quote=False).split("`")
    coded = "".join(
        f"<code>{p}</code>" if i % 2 else re.sub(r"\*(\w[^*]*)\*", r"<em>\1</em>", p) for i, p in enumerate(parts)
    )
    return "".join(f'<p style="margin: 0.3em 0">{p}</p>' for p in coded.split("\n\n"))


def folded(summary: str, inner: str) -> str:
    """HTML that opens on a click or a key, and needs neither kernel nor script."""
    head = f'<summary style="cursor: pointer; color: {INK}">{escape(summary)}</summary>'
    return f'<details style="margin: 0.4em 0 0.4em 1em; max-width: {WIDTH}">{head}{inner}</details>'


# Kinds of tokens, and the colours that JupyterLab's own editor gives them, drawn a third of the way to the text's own:
# its comments are too faint to read in the dark theme.
SYNTAX = ((Token.Keyword, "keyword", "#008000"), (Token.Operator.Word, "keyword", "#008000"),
          (Token.Comment, "comment", "#408080"), (Token.Literal.String, "string", "#ba2121"),
          (Token.Literal.Number, "number", "#008855"))  # fmt: skip
COPY = (
    "<script>document.querySelectorAll('div[data-copy]:empty').forEach(place => {const button = document.createElement"
    "('button'); button.textContent = 'Copy'; button.onclick = () => navigator.clipboard.writeText(place."
    "nextElementSibling.innerText).then(() => {button.textContent = 'Copied'}); place.append(button)})</script>"
)


def code_block(source: str) -> str:
    """Source code as HTML: highlighted, scrolled where lines are long, with a button to copy it where scripts run."""
    pad = f"padding: 0.6em 0.8em; margin: 0.3em 0; border: 1px solid {LINE}"
    style = f"{pad}; overflow-x: auto; line-height: 1.35; white-space: pre"
    code = ""
    for token, text in PythonLexer().get_tokens(source.strip()):
        colour = next((f"var(--jp-mirror-editor-{name}-color, {c})" for kind, name, c in SYNTAX if token in kind), "")
        mixed = f'<span style="color: color-mix(in srgb, {colour} 67%, currentcolor)">'
        written = escape(text, quote=False)
        code += f"{mixed}{written}</span>" if colour else written
    code = f'<code style="white-space: pre">{code.rstrip()}</code>'
    return f'<div data-copy="" style="float: right"></div><pre style="{style}">{code}</pre>{COPY}'


def image(png: bytes, alt: str) -> str:
    """A picture as HTML with its alternative text: the one form in which JupyterLab and nbconvert keep it.

    The base64 text never reaches nbval's comparison (a sanitize rule drops it); the alt does.
    """
    data = base64.b64encode(png).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}" style="max-width: 100%; height: auto">'


def drawing(svg: str, png: bytes, alt: str) -> str:
    """A picture in the page's own colours, and an opaque one for where no SVG is let in (an untrusted notebook)."""
    return f'{style()}<div class="pl-picture">{svg}{image(png, alt)}</div>'


@functools.cache
def style() -> str:
    """The style of pictures and controls; each output carries it, for it may be the only one on its page."""
    sheet = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    return f"<style>{' '.join(sheet.split())}</style>"
