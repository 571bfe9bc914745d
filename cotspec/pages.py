"""The series as a small web site: an index, one page a notebook, and the report.

Enters: executed notebooks, figures with their captions and the report of a run.
Leaves: ``runs/<profile>/html``, a folder that needs no network and nothing beside it.
"""

from __future__ import annotations

import base64
import html
import math
import re
from functools import cache
from pathlib import Path

from cotspec import artifacts, stages

WORDS_A_MINUTE, CODE_LINES_A_MINUTE = 200, 20
_FIGURE = re.compile(r"""stage\.figure\(\s*["']([A-Za-z0-9_-]+)["']""")
# Code first, so that a dollar inside it is left alone; then display, then inline math.
_MATH = re.compile(
    r"(?P<code>```.*?```|(?P<tick>`+).+?(?P=tick)|\\\$)|\$\$(?P<block>.+?)\$\$"
    r"|\$(?P<inline>[^\s$](?:[^$\n]*[^\s$\\])?)\$(?!\d)",
    re.DOTALL,
)


def write_pages(run: Path, series: list[stages.Notebook]) -> Path:
    """Write ``html``: every executed notebook, the report and ``index.html``.

    Parameters
    ----------
    run : Path
        ``runs/<profile>``.
    series : list of Notebook

    Returns
    -------
    Path of the index.
    """
    folder = run / "html"
    done = [n for n in series if _executed(run, n).exists()]
    report = run / "report" / "REPORT.html"
    for number, notebook in enumerate(done):
        before = done[number - 1] if number else None
        after = done[number + 1] if number + 1 < len(done) else None
        page = _page(
            f"{notebook.title or notebook.name} · cotspec",
            _body(run, notebook),
            _links(before, after, report.exists()),
        )
        artifacts.write_bytes(folder / f"{notebook.name}.html", page.encode())
    if report.exists():
        artifacts.write_bytes(folder / report.name, _report(report).encode())
    cards = "".join(_card(run, notebook) for notebook in series)
    link = '<a href="REPORT.html">The report of this run</a>' if report.exists() else ""
    body = (
        "<h1>Chain-of-thought specialization</h1><p class=lead>What a small language "
        "model gains and loses when it is taught multi-step math, one question a "
        f"notebook. Profile <b>{html.escape(run.name)}</b>. {link}</p>"
        f"<div class=lessons>{cards}</div>"
    )
    page = _page("Chain-of-thought specialization · cotspec", body, "")
    return artifacts.write_bytes(folder / "index.html", page.encode())


def publish(run: Path, target: Path) -> int:
    """Replace the committed results with a run's figures and report.

    Only files that an earlier call wrote are deleted; ``PUBLISHED.txt`` lists them.

    Parameters
    ----------
    run : Path
        ``runs/<profile>``, finished.
    target : Path
        The repository's ``figures``, or a folder in it.

    Returns
    -------
    int
        The number of files written.
    """
    listing = target / "PUBLISHED.txt"
    for old in listing.read_text().splitlines() if listing.exists() else ():
        (target / Path(old).name).unlink(missing_ok=True)
    folders = [run / name for name in ("figures", "report")]
    sources = [path for folder in folders for path in sorted(folder.glob("*"))]
    for source in sources:
        artifacts.write_bytes(target / source.name, source.read_bytes())
    names = "".join(f"{source.name}\n" for source in sources)
    artifacts.write_bytes(listing, names.encode())
    return len(sources)


def _executed(run: Path, notebook: stages.Notebook) -> Path:
    return run / "notebooks" / f"{notebook.name}.ipynb"


def _page(title: str, body: str, links: str) -> str:
    navigation = '<nav class="{}" aria-label="Notebooks">{}</nav>' if links else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title>{_style()}</head><body>"
        f"{navigation.format('top', links)}<main>{body}</main>"
        f"{navigation.format('bottom', links)}</body></html>\n"
    )


@cache
def _style() -> str:
    from pygments.formatters import HtmlFormatter

    ours = Path(__file__).with_name("pages.css").read_text("utf-8")
    code = HtmlFormatter(nobackground=True).get_style_defs(".highlight")
    return (
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{code}\n{ours}</style>"
    )


def _links(
    before: stages.Notebook | None, after: stages.Notebook | None, report: bool
) -> str:
    links = ['<a href="index.html">All notebooks</a>']
    links += ['<a href="REPORT.html">Report</a>'] if report else []
    for notebook, relation, text in ((before, "prev", "← {}"), (after, "next", "{} →")):
        if notebook:
            title = html.escape(notebook.title or notebook.name)
            links.append(
                f'<a rel="{relation}" href="{notebook.name}.html">'
                f"{text.format(title)}</a>"
            )
    return "".join(links)


def _body(run: Path, notebook: stages.Notebook) -> str:
    """Return the notebook's cells as HTML: math as MathML, figures with captions."""
    import nbformat
    from nbconvert import HTMLExporter

    content = nbformat.read(_executed(run, notebook), as_version=4)
    tags = [set(cell.metadata.get("tags", ())) for cell in content.cells]
    if any("injected-parameters" in tag for tag in tags):
        # The injected cell repeats the one above it with the values that were used.
        kept = zip(content.cells, tags, strict=True)
        content.cells = [cell for cell, tag in kept if "parameters" not in tag]
    formulas: list[str] = []
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = _set_aside(cell.source, formulas)
        elif cell.cell_type == "code":
            _describe_figures(cell, run, notebook)
            for output in cell.outputs:
                if "text/markdown" in output.get("data", {}):
                    text = output.data["text/markdown"]
                    output.data["text/markdown"] = _set_aside(text, formulas)
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    body, _ = exporter.from_notebook_node(content)
    body = re.sub(r'(href="[\w./-]*?)\.ipynb(?=[#"])', r"\1.html", body)
    return re.sub("\ue000(\\d+)\ue001", lambda m: formulas[int(m[1])], _tables(body))


def _tables(page: str) -> str:
    """Let tables fit a phone and paper: long labels may break, prose gets room."""
    page = re.sub(
        r"(<t[hd]\b[^>]*>)([\w/]*_\w+)(?=</t[hd]>)",
        lambda found: found[1] + found[2].replace("_", "_<wbr>"),
        page,
    )
    return re.sub(r"<td(?=[^>]*>[^<]{50,})", "<td data-prose", page)


def _set_aside(text: str, formulas: list[str]) -> str:
    """Put a mark in the place of each formula: Markdown would eat its ``_`` and ``|``.

    Notebooks write math as ``$…$`` and ``$$…$$``; its MathML is appended to `formulas`.
    """

    def marked(found: re.Match) -> str:
        if found["code"]:
            return found[0]
        display = "block" if found["block"] else "inline"
        formulas.append(_mathml((found["block"] or found["inline"]).strip(), display))
        return f"\ue000{len(formulas) - 1}\ue001"

    return _MATH.sub(marked, text)


def _mathml(latex: str, display: str) -> str:
    from latex2mathml import converter

    try:
        mathml = converter.convert(latex, display=display)
    except Exception:  # its errors share no class; a typo must not cost the page
        return f"<code>{html.escape(latex)}</code>"
    mathml = re.sub(
        "<mi>(log|exp|max|min)</mi>", r'\g<0><mspace width="0.17em"/>', mathml
    )
    return mathml.replace("<math ", f'<math alttext="{html.escape(latex)}" ', 1)


def _describe_figures(cell: dict, run: Path, notebook: stages.Notebook) -> None:
    """Show each picture of a code cell with its alternative text and caption."""
    names = iter(_FIGURE.findall(cell.source))
    for output in cell.outputs:
        picture = output.get("data", {}).get("image/png")
        if picture:
            name = next(names, "")
            caption = _caption(run, name) if name else ""
            alt = caption or f"Picture of notebook {notebook.title or notebook.name}"
            output.data = {"text/html": _figure(picture, alt, caption, name)}


def _figure(picture: str, alt: str, caption: str, name: str) -> str:
    anchor = f' id="{name}"' if name else ""
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure{anchor}><img alt="{html.escape(alt)}" '
        f'src="data:image/png;base64,{"".join(picture.split())}">{below}</figure>'
    )


def _caption(run: Path, name: str) -> str:
    sidecar = run / "figures" / f"{name}.json"
    caption = artifacts.read_json(sidecar).get("caption") if sidecar.exists() else None
    return caption or name.replace("_", " ")


def _report(report: Path) -> str:
    """Return the report for the folder: way back, our style, pictures inside it."""
    links = '<nav class="top"><a href="index.html">All notebooks</a></nav>'
    page = report.read_text("utf-8").replace('href="../html/', 'href="')
    page = page.replace("</style>", f"</style>{_style()}{links}", 1)

    def embedded(found: re.Match) -> str:
        picture = report.parent / found[1]
        if not picture.exists():
            return found[0]
        content = base64.b64encode(picture.read_bytes()).decode()
        return f'src="data:image/png;base64,{content}"'

    return re.sub(r'src="([^":]+\.png)"', embedded, _tables(page))


def _card(run: Path, notebook: stages.Notebook) -> str:
    """Return one notebook of the index: question, reading time, state, main figure."""
    page = f"{notebook.name}.html"
    title = html.escape(notebook.title or notebook.name)
    if _executed(run, notebook).exists():
        title = f'<a href="{page}">{title}</a>'
    finished = stages.read_marker(run, notebook.name)
    state = "finished" if finished else "<span class=failed>not finished</span>"
    markdown, code = _texts(notebook.path)
    minutes = len(markdown.split()) / WORDS_A_MINUTE
    minutes += len(code.splitlines()) / CODE_LINES_A_MINUTE
    question = re.search(r"\*\*Question\.\*\*\s*(.+?)(?:\n\n|\Z)", markdown, re.DOTALL)
    asked = re.sub(r"[*`]|\[(.+?)\]\(.+?\)", r"\1", question[1]) if question else ""
    names = [n for n in _FIGURE.findall(code) if _picture(run, n).exists()]
    shown = ""
    if names:
        picture = base64.b64encode(_picture(run, names[0]).read_bytes()).decode()
        caption = _caption(run, names[0])
        shown = _figure(picture, caption, caption, "")
    more = " · ".join(
        f'<a href="{page}#{n}">{n[3:].replace("_", " ")}</a>' for n in names[1:]
    )
    return (
        f"<article><h2>{title}</h2><p>{html.escape(asked)}</p><p class=muted>"
        f"{math.ceil(minutes)} min to read · {state}</p>{shown}"
        f"{f'<p class=muted>More figures: {more}</p>' if more else ''}</article>"
    )


def _texts(path: Path) -> tuple[str, str]:
    import nbformat

    cells = nbformat.read(path, as_version=4).cells
    kinds = ("markdown", "code")
    return tuple(
        "\n\n".join(c.source for c in cells if c.cell_type == k) for k in kinds
    )


def _picture(run: Path, name: str) -> Path:
    return run / "figures" / f"{name}.png"
