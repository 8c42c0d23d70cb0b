"""The pages of the report: harmless with hostile notebooks, whole without a network."""

import re
from html.parser import HTMLParser

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from helpers import page, report

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(1)><a href='javascript:alert(1)'>x</a>"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
RUNS = {"script", "iframe", "object", "embed", "svg", "link", "base", "form"}


class Dangers(HTMLParser):
    """Collects what a browser would run or load when it reads a page."""

    def __init__(self, html: str):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        if tag in RUNS:
            self.found.append(tag)
        for name, value in attributes:
            address = (value or "").strip().lower()
            loads = name == "src" and not address.startswith("data:image/")
            if name.startswith("on") or loads or address.startswith("javascript:"):
                self.found.append(f"{tag} {name}={value}")


def shown(*cells, **metadata):
    notebook = new_notebook(cells=list(cells))
    notebook.metadata.update(metadata)
    return page.render(notebook)


def code(*outputs):
    return new_code_cell("x = '</script><script>alert(1)</script>'", outputs=list(outputs))


def display(**data):
    return new_output("display_data", {kind.replace("_", "/", 1): v for kind, v in data.items()})


HOSTILE = {
    "markdown": new_markdown_cell(f"# Title {ATTACK}\n\n{ATTACK}\n\n[x](javascript:alert(1))"),
    "markdown picture": new_markdown_cell("![x](http://example.com/spy.png)"),
    "formula": new_markdown_cell(r"$\text{<script>alert(1)</script>}$ and $$</math><script>$$"),
    "html": code(display(text_html=f"<table onclick=alert(1)><tr><td>{ATTACK}</td></tr></table>")),
    "javascript": code(display(application_javascript="alert(1)", text_plain="x")),
    "svg": code(new_output("display_data", {"image/svg+xml": f"<svg>{ATTACK}</svg>"})),
    "png": code(display(image_png=f'"><script>alert(1)</script>{PIXEL}')),
    "stream": code(new_output("stream", name="stdout", text=ATTACK)),
    "error": code(new_output("error", ename=ATTACK, evalue=ATTACK, traceback=[ATTACK])),
    "latex": code(display(text_latex=f"${ATTACK}$")),
    "claims": code(new_output("display_data", {"text/markdown": ATTACK, "text/plain": ATTACK})),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_hostile_survives(kind):
    html = shown(HOSTILE[kind], widgets={"application/x": {"state": {"a": ATTACK}}}, title=ATTACK)
    assert Dangers(html).found == []
    assert "Content-Security-Policy" in html.split("<style", 1)[0]


def test_the_check_itself_finds_dangers():
    assert Dangers(ATTACK).found == ["script", "img src=x", "img onerror=alert(1)",
                                     "a href=javascript:alert(1)"]  # fmt: skip


def test_the_page_keeps_what_it_is_for():
    table = '<table class="claims"><tr><td class="reproduced">yes</td></tr></table>'
    html = shown(
        new_markdown_cell("## A heading with $x^2$\n\n$$\\frac{a}{b}$$\n\n`code` and **bold**"),
        new_code_cell("print('hello')", execution_count=3, outputs=[
            new_output("stream", name="stdout", text="hello"),
            display(image_png=PIXEL, text_plain="a figure"),
            display(text_html=table),
        ]),
    )  # fmt: skip
    assert html.count("<math") == 2
    assert "<mfrac>" in html
    assert "<strong>bold</strong>" in html
    assert f"data:image/png;base64,{PIXEL}" in html
    assert '<td class="reproduced">yes</td>' in html
    assert re.search(r"In.{0,6}\[3\]", html)
    assert "hello" in html


def test_nothing_is_loaded_from_elsewhere():
    html = shown(new_markdown_cell("$x$ and https://arxiv.org"), code(display(image_png=PIXEL)))
    assert Dangers(html).found == []
    assert not re.search(r"url\(\s*[\"']?https?:", html, re.I)


def test_unknown_formulas_are_shown_as_typed():
    assert page.mathml(r"\frac", "inline") == r"<code>\frac</code>"
    assert page.mathml(r"a < b", "inline").count("&#x0003C;") == 1


def test_the_notebook_is_not_changed():
    notebook = new_notebook(cells=[code(display(image_svg="<svg/>", text_plain="x"))])
    before = nbformat.writes(notebook)
    page.render(notebook)
    assert nbformat.writes(notebook) == before


def test_a_report_leaves_out_what_is_no_notebook(tmp_path):
    (tmp_path / "cut.ipynb").write_text('{"cells": [')
    (tmp_path / "other.ipynb").write_text("{}")
    nbformat.write(new_notebook(), tmp_path / "plain.ipynb")
    good = new_notebook(cells=[new_markdown_cell(f"# Good {ATTACK}")])
    good.metadata["reproduce"] = {
        "notebook": ATTACK, "profile": ATTACK, "message": ATTACK, "git": ATTACK, "hardware": 7,
        "overrides": {}, "parameters": {},
    }  # fmt: skip
    nbformat.write(good, tmp_path / "good.ipynb")
    html = report.write(tmp_path).read_text()
    assert "Good" in html
    assert Dangers(html).found == []
    assert not (tmp_path / "cut.html").exists()
