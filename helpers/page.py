"""An executed notebook as one HTML page that is safe to open and needs no network.

Notebooks of others are not trusted: markdown shows raw HTML as text, outputs keep text, pictures
and cleaned tables, nothing can run a script (a content security policy says so again), and no
address outside the page is loaded. Formulas become MathML, which browsers draw themselves.
"""

from __future__ import annotations

import html
import re
from typing import Any

_RULES = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; font-src data:"
POLICY = f'<meta http-equiv="Content-Security-Policy" content="{_RULES}">'
TABLES = {
    *("table", "thead", "tbody", "tr", "th", "td", "caption"),
    *("p", "b", "i", "em", "strong", "code", "pre", "br", "span"),
}
SCRIPT = re.compile(r"<script\b.*?</script\s*>", re.S | re.I)
BASE64 = re.compile(r"[A-Za-z0-9+/=\s]+")


def render(notebook) -> str:
    """The page of a notebook (nbformat, version 4); the notebook itself is not changed."""
    from nbconvert import HTMLExporter

    class Exporter(HTMLExporter):
        def default_filters(self):
            yield from super().default_filters()
            yield "markdown2html", markdown

    exporter = Exporter(template_name="lab", mathjax_url="", require_js_url="", jquery_url="")
    body, _ = exporter.from_notebook_node(harmless(notebook))
    body = SCRIPT.sub("", body)
    return body.replace("<head>", f"<head>{POLICY}", 1)


def harmless(notebook):
    """A copy with text, pictures and cleaned tables only, and without foreign metadata."""
    from nbformat import v4

    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cells.append(v4.new_markdown_cell(cell.source))
        elif cell.cell_type == "code":
            outputs = [o for output in cell.outputs if (o := _output(output))]
            code = v4.new_code_cell(cell.source, outputs=outputs)
            code.execution_count = cell.execution_count
            cells.append(code)
    copy = v4.new_notebook(cells=cells)
    copy.metadata["language_info"] = {"name": "python", "pygments_lexer": "python"}
    return copy


def _output(output) -> Any:
    """One output without what could do harm; None when nothing of it is left."""
    from nbformat import v4

    if output.output_type in ("stream", "error"):
        return output
    kept = {}
    for kind, value in output.get("data", {}).items():
        value = "".join(value) if isinstance(value, list) else value
        if not isinstance(value, str):
            continue
        if kind == "text/plain":
            kept[kind] = value
        elif kind in ("image/png", "image/jpeg", "image/gif"):
            if BASE64.fullmatch(value):
                kept[kind] = value
        elif kind == "text/html":
            kept[kind] = clean(value)
    return v4.new_output("display_data", kept) if kept else None


def clean(text: str) -> str:
    """HTML with tables and emphasis only; of other elements the text inside is left."""
    import bleach

    return bleach.clean(text, tags=TABLES, attributes=["class", "colspan", "rowspan"], strip=True)


def markdown(source: str) -> str:
    """Markdown as HTML, raw HTML shown as text, formulas as MathML."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return f'<p style="text-align:center">{mathml(body, "block")}</p>'

        def inline_math(self, body: str) -> str:
            return mathml(body, "inline")

        def latex_environment(self, name: str, body: str) -> str:
            return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

        def block_html(self, html: str) -> str:
            return f"<p>{self.escape_html(html)}</p>"

        def inline_html(self, html: str) -> str:
            return self.escape_html(html)

        def image(self, text: str, url: str, title: str | None = None) -> str:
            if url.startswith("data:image/") or url.startswith("attachment:"):
                return super().image(text, url, title)
            return f"[{self.escape_html(text)}]"  # a picture elsewhere would be loaded

    renderer = Renderer(escape=True, allow_harmful_protocols=False, exclude_anchor_links=True)
    return MarkdownWithMath(renderer=renderer).render(source)


def mathml(formula: str, display: str) -> str:
    """A TeX formula as MathML; what cannot be converted is shown as it was typed."""
    from latex2mathml.converter import convert

    try:
        return convert(formula, display=display)
    except Exception:  # the converter raises many kinds for TeX that it does not know
        return f"<code>{html.escape(formula)}</code>"
