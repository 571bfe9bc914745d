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
_QUESTION = re.compile(r"\*\*Question\.\*\*\s*(.+?)(?:\n\n|\Z)", re.DOTALL)
_PNG = "data:image/png;base64,"
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
    neighbours = zip([None, *done], done, [*done[1:], None], strict=False)
    for before, notebook, after in neighbours:
        links = _links(before, after, report.exists())
        page = _page(notebook.title, _body(run, notebook), links)
        artifacts.write_text(folder / f"{notebook.name}.html", page)
    link = ""
    if report.exists():
        artifacts.write_text(folder / report.name, _report(report))
        link = '<a href="REPORT.html">The report of this run</a>'
    texts = [_texts(notebook) for notebook in series]
    cards = "".join(map(_card, [run] * len(series), series, texts))
    minutes = sum(map(_minutes, texts))
    title = "Chain-of-thought specialization"
    body = (
        f"<h1>{title}</h1><p class=lead>What a small language "
        "model gains and loses when it is taught multi-step math, one question a "
        f"notebook. Profile <b>{html.escape(run.name)}</b>. {link}</p>"
        f"{_verdicts(run)}<p>{minutes} min to read in all.</p>"
        f"<div class=lessons>{cards}</div>"
    )
    return artifacts.write_text(folder / "index.html", _page(title, body))


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
    # Not whatever lies there: a notebook may have drawn more before it changed.
    names = sorted(path.name for path in (run / "artifacts").iterdir())
    markers = filter(None, [stages.read_marker(run, name) for name in names])
    paths = {Path(entry.path) for one in markers for entry in one.artifacts.values()}
    shown = [path for path in sorted(paths) if path.parts[0] in ("figures", "report")]
    for path in shown:
        artifacts.write_bytes(target / path.name, (run / path).read_bytes())
    artifacts.write_text(listing, "".join(f"{path.name}\n" for path in shown))
    return len(shown)


def _executed(run: Path, notebook: stages.Notebook) -> Path:
    return run / "notebooks" / f"{notebook.name}.ipynb"


def _page(title: str, body: str, links: str = "") -> str:
    navigation = '<nav class="{}" aria-label="Notebooks">{}</nav>' if links else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)} · cotspec</title>{_style()}</head><body>"
        f"{navigation.format('top', links)}<main>{body}</main>"
        f"{navigation.format('bottom', links)}</body></html>\n"
    )


@cache
def _style() -> str:
    from pygments.formatters import HtmlFormatter

    ours = Path(__file__).with_name("pages.css").read_text("utf-8")
    code = HtmlFormatter(nobackground=True).get_style_defs(".highlight")
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    return f"{viewport}<style>{code}\n{ours}</style>"


def _links(
    before: stages.Notebook | None, after: stages.Notebook | None, report: bool
) -> str:
    links = '<a href="index.html">All notebooks</a>'
    links += '<a href="REPORT.html">Report</a>' if report else ""
    for notebook, relation, text in ((before, "prev", "← {}"), (after, "next", "{} →")):
        if notebook:
            text = text.format(html.escape(notebook.title))
            links += f'<a rel="{relation}" href="{notebook.name}.html">{text}</a>'
    return links


def _body(run: Path, notebook: stages.Notebook) -> str:
    """Return the notebook's cells as HTML: math as MathML, figures with captions."""
    import nbformat
    from nbconvert import HTMLExporter

    content = nbformat.read(_executed(run, notebook), as_version=4)
    formulas: list[str] = []
    for cell in list(content.cells):
        if "parameters" in cell.metadata.get("tags", ()):
            content.cells.remove(cell)  # papermill's next one has the values used
        if cell.cell_type == "markdown":
            cell.source = _set_aside(cell.source, formulas)
        elif cell.cell_type == "code":
            _describe_figures(cell, run, notebook)
            for output in cell.outputs:
                if "text/markdown" in output.get("data", {}):
                    text = output.data["text/markdown"]
                    output.data["text/markdown"] = _set_aside(text, formulas)
    plain = {"exclude_input_prompt": True, "exclude_output_prompt": True}
    exporter = HTMLExporter(template_name="basic", **plain)
    body, _ = exporter.from_notebook_node(content)
    body = re.sub(r'(href="[\w./-]*?)\.ipynb(?=[#"])', r"\1.html", body)
    body = re.sub(r'<a href="\.\./[^"]*">(.*?)</a>', r"\1", body)  # sources stay behind
    return re.sub("\ue000(\\d+)\ue001", lambda m: formulas[int(m[1])], _tables(body))


def _tables(page: str) -> str:
    """Let tables fit a phone and paper: long labels may break, prose gets room."""
    label = r"(<t[hd]\b[^>]*>)([\w/]*_\w+)(?=</t[hd]>)"
    page = re.sub(label, lambda m: m[1] + m[2].replace("_", "_<wbr>"), page)
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
    space = r'\g<0><mspace width="0.17em"/>'
    mathml = re.sub("<mi>(log|exp|max|min)</mi>", space, mathml)
    return mathml.replace("<math ", f'<math alttext="{html.escape(latex)}" ', 1)


def _describe_figures(cell: dict, run: Path, notebook: stages.Notebook) -> None:
    """Show each picture of a code cell with its alternative text and caption."""
    names = iter(_FIGURE.findall(cell.source))
    for output in cell.outputs:
        if picture := output.get("data", {}).get("image/png"):
            name = next(names, "")
            caption = _caption(run, name) if name else ""
            alt = caption or f"Picture of notebook {notebook.title}"
            source = _PNG + "".join(picture.split())
            output.data = {"text/html": _figure(source, alt, caption)}


def _figure(source: str, alt: str, caption: str) -> str:
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{html.escape(alt)}" src="{source}">{below}</figure>'


def _embedded(picture: Path) -> str:
    return f"{_PNG}{base64.b64encode(picture.read_bytes()).decode()}"


def _caption(run: Path, name: str) -> str:
    sidecar = run / "figures" / f"{name}.json"
    caption = artifacts.read_json(sidecar).get("caption") if sidecar.exists() else None
    return caption or name.replace("_", " ")


def _report(report: Path) -> str:
    """Return the report for the folder: way back, our style, pictures inside it."""
    links = '<nav class="top"><a href="index.html">All notebooks</a></nav>'
    page = report.read_text("utf-8").replace('href="../html/', 'href="')
    page = page.replace("</style>", f"</style>{_style()}{links}", 1)

    def inside(found: re.Match) -> str:
        picture = report.parent / found[1]
        return f'src="{_embedded(picture)}"' if picture.exists() else found[0]

    return re.sub(r'src="([^":]+\.png)"', inside, _tables(page))


def _verdicts(run: Path) -> str:
    """Return the claims with what became of them, once notebook 11 has judged.

    Each claim leads to the notebook that measured it.
    """
    from cotspec.report import CLAIMS

    table = run / "report" / "claims.csv"
    if not table.exists():
        return ""
    notebooks = {claim.id: claim.notebook for claim in CLAIMS}
    items = ""
    for row in artifacts.read_frame(table).itertuples():
        name = row.claim
        if (run / "notebooks" / f"{notebooks[name]}.ipynb").exists():
            name = f'<a href="{notebooks[name]}.html">{name}</a>'
        items += f"<li>{name}, {html.escape(row.statement)}: <b>{row.verdict}</b></li>"
    return f"<h2>What came of the paper's claims</h2><ul>{items}</ul>"


def _texts(notebook: stages.Notebook) -> dict[str, str]:
    """Return a notebook's sources by the kind of cell."""
    import nbformat

    texts = {"markdown": "", "code": "", "raw": ""}
    for cell in nbformat.read(notebook.path, as_version=4).cells:
        texts[cell.cell_type] += f"{cell.source}\n\n"
    return texts


def _minutes(texts: dict[str, str]) -> int:
    """Return how long it takes to read these texts."""
    minutes = len(texts["markdown"].split()) / WORDS_A_MINUTE
    minutes += len(texts["code"].rstrip("\n").splitlines()) / CODE_LINES_A_MINUTE
    return math.ceil(minutes)


def _card(run: Path, notebook: stages.Notebook, texts: dict[str, str]) -> str:
    """Return one notebook of the index: question, reading time, state, main figure."""
    title = html.escape(notebook.title)
    if _executed(run, notebook).exists():
        title = f'<a href="{notebook.name}.html">{title}</a>'
    finished = stages.read_marker(run, notebook.name)
    state = "finished" if finished else "<span class=failed>not finished</span>"
    found = _QUESTION.search(texts["markdown"])
    question = re.sub(r"[*`]|\[(.+?)\]\(.+?\)", r"\1", found[1]) if found else ""
    names, folder = _FIGURE.findall(texts["code"]), run / "figures"
    main = next((name for name in names if (folder / f"{name}.png").exists()), "")
    caption = _caption(run, main)
    shown = _figure(_embedded(folder / f"{main}.png"), caption, caption) if main else ""
    return (
        f"<article><h2>{title}</h2><p>{html.escape(question)}</p><p class=muted>"
        f"{_minutes(texts)} min to read · {state}</p>{shown}</article>"
    )
