"""The series as a site: one page a notebook, the report, and an index.

Enters: executed notebooks under ``runs/<profile>/notebooks``, figures, the report.
Leaves: ``runs/<profile>/html``, a folder that can be read offline and published alone.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

from cotspec import artifacts, stages

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; color: #222; }
a { color: #0b5cad; }
.lessons { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr));
           gap: 1rem; }
.lesson { border: 1px solid #ddd; border-radius: 6px; padding: .8rem; }
.lesson img { width: 100%; height: 9rem; object-fit: contain; object-position: left; }
.lesson h2 { font-size: 1.05rem; margin: 0 0 .4rem; } .lesson p { margin: .3rem 0; }
.failed { color: #a00; } .muted { color: #666; font-size: .85rem; }
"""
# Of notebook pages, after nbconvert's own.
PAGE_STYLE = """
main { max-width: 58rem; margin: 0 auto; }
.jp-RenderedMarkdown { max-width: 46rem; }
.jp-OutputArea-output { overflow-x: auto; max-width: 100%; }
.jp-OutputArea-output img { max-width: 100%; height: auto; }
.jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"] { background: #f4f4f4;
  color: #666; }
.jp-RenderedMarkdown table { display: block; overflow-x: auto; }
.caption { font: .9rem/1.4 system-ui, sans-serif; color: #444; max-width: 46rem; }
nav.series { font: 1rem system-ui, sans-serif; margin: 1rem; display: flex;
  flex-wrap: wrap; gap: 1rem; } nav.series a { color: #0b5cad; }
@media (max-width: 600px) { .jp-InputPrompt, .jp-OutputPrompt { display: none; }
  .jp-Cell, .jp-Notebook { padding: .2rem !important; } }
@media print { pre { white-space: pre-wrap !important; word-break: break-word; }
  table { font-size: 8px; } nav.series { display: none; }
  .jp-OutputArea-output { overflow: visible; } }
"""
# Code spans are left alone: a $ in them is a dollar.
_MATH = re.compile(r"(```.*?```|`[^`]*`)|\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)
_FIGURE = re.compile(r'stage\.figure\(\s*"([^"]+)"')
WORDS_A_MINUTE, LINES_A_MINUTE = 180, 12


def write_pages(run: Path, series: list[stages.Notebook]) -> Path:
    """Convert every executed notebook and the report, and write ``html/index.html``.

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
    done = [n for n in series if (run / "notebooks" / f"{n.name}.ipynb").exists()]
    for number, notebook in enumerate(done):
        executed = run / "notebooks" / f"{notebook.name}.ipynb"
        page = folder / f"{notebook.name}.html"
        if not page.exists() or page.stat().st_mtime < executed.stat().st_mtime:
            around = [n.name for n in done[max(0, number - 1) : number + 2]]
            text = _page(executed, run, notebook, around)
            artifacts.write_bytes(page, text.encode())
    for figure in (run / "figures").glob("*.png"):
        artifacts.write_bytes(folder / "figures" / figure.name, figure.read_bytes())
    report = run / "report" / "REPORT.html"
    if report.exists():
        back = '<p><a href="index.html">the notebooks</a></p>'
        text = report.read_text("utf-8").replace("</style>", f"</style>{back}", 1)
        artifacts.write_bytes(folder / "report.html", text.encode())
    return artifacts.write_bytes(folder / "index.html", _index(run, series).encode())


def publish(run: Path, target: Path) -> int:
    """Replace the committed results with a run's figures and report.

    Only files that an earlier call wrote are deleted; ``PUBLISHED.txt`` lists them.

    Parameters
    ----------
    run : Path
        ``runs/<profile>``, finished.
    target : Path
        The repository's ``figures``.

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


def set_aside_math(markdown: str, formulas: list[str]) -> str:
    """Replace ``$…$`` and ``$$…$$`` by marks, and append their MathML to `formulas`.

    Browsers draw MathML by themselves; nbconvert's cleaning would take it apart, so
    `put_back_math` replaces the marks in the finished page.
    """
    from latex2mathml.converter import convert

    def mark(match: re.Match) -> str:
        code, block, inline = match.groups()
        if code:
            return code
        shown = convert(block or inline, display="block" if block else "inline")
        formulas.append(shown)
        return f"FORMULA{len(formulas) - 1}SET"

    return _MATH.sub(mark, markdown)


def put_back_math(page: str, formulas: Sequence[str]) -> str:
    """Replace the marks of `set_aside_math` by their MathML."""
    return re.sub(r"FORMULA(\d+)SET", lambda m: formulas[int(m[1])], page)


def _page(
    executed: Path, run: Path, notebook: stages.Notebook, around: Sequence[str]
) -> str:
    import nbformat
    from nbconvert import HTMLExporter

    content = nbformat.read(executed, as_version=4)
    tags = [set(cell.metadata.get("tags", ())) for cell in content.cells]
    if any("injected-parameters" in one for one in tags):  # they replace the others
        content.cells = [
            cell
            for cell, one in zip(content.cells, tags, strict=True)
            if "parameters" not in one
        ]
    formulas: list[str] = []
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = set_aside_math(cell.source, formulas)
        else:
            _describe_figures(cell, run)
    exporter = HTMLExporter(embed_images=True, mathjax_url="", require_js_url="")
    body, _ = exporter.from_notebook_node(content)
    body = put_back_math(body, formulas)
    body = re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="\1.html"', body)
    links = [f'<a href="{n}.html">{_label(n, notebook.name)}</a>' for n in around]
    links = [link for link, n in zip(links, around, strict=True) if n != notebook.name]
    nav = '<a href="index.html">all notebooks</a>' + "".join(links)
    body = body.replace("<main>", f'<main><nav class="series">{nav}</nav>', 1)
    body = body.replace("</main>", f'<nav class="series">{nav}</nav></main>', 1)
    title = f"<title>{html.escape(notebook.title or notebook.name)}</title>"
    body = re.sub(r"<title>.*?</title>", lambda _: title, body, count=1)
    return body.replace("</head>", f"<style>{PAGE_STYLE}</style></head>", 1)


def _label(name: str, current: str) -> str:
    return ("← " if name < current else "→ ") + name.replace("_", " ")


def _describe_figures(cell, run: Path) -> None:
    """Give every picture of a code cell its alt text, and a figure its caption."""
    import nbformat

    named = _FIGURE.search(cell.source)
    caption = _caption(run / "figures" / f"{named[1]}.png") if named else ""
    pictures = [out for out in cell.outputs if "image/png" in out.get("data", {})]
    for output in pictures:
        output.metadata["image/png"] = {
            "alt": caption or "chart drawn by the code above"
        }
    if pictures and caption:
        text = f'<p class="caption">{html.escape(caption)}</p>'
        shown = nbformat.v4.new_output("display_data", {"text/html": text})
        cell.outputs.append(shown)


def _index(run: Path, series: list[stages.Notebook]) -> str:
    lessons = "\n".join(_lesson(run, notebook) for notebook in series)
    report = ""
    if (run / "html" / "report.html").exists():
        report = ' <a href="report.html">The report</a> judges every claim.'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Chain-of-thought specialization</title><style>{STYLE}</style></head>"
        "<body><h1>Chain-of-thought specialization</h1><p>Fu et al., ICML 2023, in "
        f"twelve notebooks; profile <b>{html.escape(run.name)}</b>.{report}</p>"
        f'<div class="lessons">{lessons}</div></body></html>\n'
    )


def _lesson(run: Path, notebook: stages.Notebook) -> str:
    title = html.escape(notebook.title or notebook.name)
    if (run / "html" / f"{notebook.name}.html").exists():
        title = f'<a href="{notebook.name}.html">{title}</a>'
    state = "" if stages.read_marker(run, notebook.name) else "not finished"
    cells = artifacts.read_json(notebook.path)["cells"]
    prose = " ".join("".join(c["source"]) for c in cells if c["cell_type"] != "code")
    question = re.search(r"\*\*Question\.\*\* (.+?)\n", prose)
    lines = sum(code.count("\n") + 1 for code in notebook.code)
    minutes = len(prose.split()) / WORDS_A_MINUTE + lines / LINES_A_MINUTE
    picture = ""
    names = [name for code in notebook.code for name in _FIGURE.findall(code)]
    shown = [run / "html" / "figures" / f"{name}.png" for name in names]
    if shown := [path for path in shown if path.exists()]:
        alt = html.escape(_caption(run / "figures" / shown[-1].name), quote=True)
        picture = f'<img loading="lazy" src="figures/{shown[-1].name}" alt="{alt}">'
    return (
        f'<div class="lesson"><h2>{title}</h2>{picture}'
        f"<p>{html.escape(question[1].replace('*', '')) if question else ''}</p>"
        f'<p class="muted">about {minutes:.0f} min to read '
        f'<span class="failed">{state}</span></p></div>'
    )


def _caption(png: Path) -> str:
    sidecar = png.with_suffix(".json")
    caption = artifacts.read_json(sidecar).get("caption") if sidecar.exists() else None
    return caption or png.stem.replace("_", " ")
