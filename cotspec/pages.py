"""The HTML page of the series: one page a notebook, and an index.

Enters: executed notebooks under ``runs/<profile>/notebooks``. Leaves:
``runs/<profile>/html/*.html``, readable offline. `STYLE` is the report's, too.
"""

from __future__ import annotations

import html
from pathlib import Path

from cotspec import artifacts, stages

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; color: #222; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .4rem .6rem; border-bottom: 1px solid #ddd;
         vertical-align: top; }
.failed { color: #a00; } .muted { color: #666; }
.gallery { display: grid; grid-template-columns: repeat(2, 1fr); gap: 1rem; }
.gallery figure { margin: 0; } .gallery img { max-width: 100%; }
figcaption { font-size: .85rem; color: #444; }
"""


def write_pages(run: Path, series: list[stages.Notebook]) -> Path:
    """Convert every executed notebook and write ``html/index.html``.

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
    for notebook in series:
        executed = run / "notebooks" / f"{notebook.name}.ipynb"
        if executed.exists():
            page = folder / f"{notebook.name}.html"
            if not page.exists() or page.stat().st_mtime < executed.stat().st_mtime:
                artifacts.write_bytes(page, _convert(executed).encode())
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


def _convert(executed: Path) -> str:
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(embed_images=True, mathjax_url="", require_js_url="")
    body, _ = exporter.from_filename(str(executed))
    back = '<p style="margin:1rem 2rem"><a href="index.html">all notebooks</a></p>'
    return body.replace("<main>", f"<main>{back}", 1)


def _index(run: Path, series: list[stages.Notebook]) -> str:
    rows = "\n".join(_row(run, notebook) for notebook in series)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>cotspec</title>"
        f"<style>{STYLE}</style><h1>Chain-of-thought specialization</h1>"
        f"<p>Profile <b>{html.escape(run.name)}</b>. "
        f'<a href="../report/REPORT.html">Report</a></p>'
        f"<table><tr><th>Notebook<th>State<th>Seconds</tr>{rows}</table>"
        f"<h2>Figures</h2><div class=gallery>{_gallery(run)}</div></html>\n"
    )


def _row(run: Path, notebook: stages.Notebook) -> str:
    marker = stages.read_marker(run, notebook.name)
    state = "finished" if marker else "<span class=failed>not finished</span>"
    seconds = marker["seconds"] if marker else ""
    title = html.escape(notebook.title or notebook.name)
    link = f'<a href="{notebook.name}.html">{title}</a>'
    if not (run / "html" / f"{notebook.name}.html").exists():
        link = f"<span class=muted>{title}</span>"
    return f"<tr><td>{link}<td>{state}<td>{seconds}</tr>"


def _gallery(run: Path) -> str:
    return "".join(
        f'<figure><a href="../figures/{p.name}"><img loading=lazy '
        f'src="../figures/{p.name}" alt="{p.stem}"></a>'
        f"<figcaption>{html.escape(_caption(p))}</figcaption></figure>"
        for p in sorted((run / "figures").glob("*.png"))
    )


def _caption(png: Path) -> str:
    sidecar = png.with_suffix(".json")
    caption = artifacts.read_json(sidecar).get("caption") if sidecar.exists() else None
    return caption or png.stem.replace("_", " ")
