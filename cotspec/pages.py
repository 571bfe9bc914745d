"""The series as a small web site: an index, one page a notebook, and the report.

``pages.html`` says what stands on a page, ``pages.css`` how it looks.

Enters: executed notebooks, figures with their captions and the report of a run.
Leaves: ``runs/<profile>/html``, a folder that needs no network and nothing beside it.
"""

import base64
import html
import math
import re
from pathlib import Path

from cotspec import artifacts, stages

WORDS_A_MINUTE, CODE_LINES_A_MINUTE = 200, 20
_FIGURE = re.compile(r"""stage\.figure\(\s*["']([A-Za-z0-9_-]+)["']""")
_QUESTION = re.compile(r"\*\*Question\.\*\*\s*(.+?)(?:\n\n|\Z)", re.DOTALL)
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
    from jinja2 import Environment, FileSystemLoader
    from pygments.formatters import HtmlFormatter

    from cotspec.report.claims import CLAIMS

    report, judged = (run / "report" / file for file in ("REPORT.md", "claims.csv"))
    done = [nb for nb in series if (run / "notebooks" / nb.path.name).exists()]
    shared = {
        "code_style": HtmlFormatter(nobackground=True).get_style_defs(".highlight"),
        "done": done,
        "report": report.exists(),
    }
    files = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    template = files.get_template("pages.html", globals=shared)

    def write(name: str, title: str, **facts) -> Path:
        page = template.render(title=title, **facts)
        return artifacts.write_text(run / "html" / f"{name}.html", page)

    for at, notebook in enumerate(done):
        write(notebook.name, notebook.title, at=at, body=_body(run, notebook))
    if report.exists():
        body = _tables(_markdown(report.read_text("utf-8")))
        write("REPORT", f"The paper and this run: {run.name}", body=body)
    return write(
        "index",
        "Chain-of-thought specialization",
        profile=run.name,
        lessons=[_lesson(run, notebook) for notebook in series],
        claims=[*artifacts.read_frame(judged).itertuples()] if judged.exists() else (),
        sources={claim.id: claim.notebook for claim in CLAIMS},
    )


def _lesson(run: Path, notebook: stages.Notebook) -> dict[str, object]:
    """Return what the index says of a notebook: question, minutes, state, figure."""
    import nbformat

    texts = {"markdown": "", "code": "", "raw": ""}
    for cell in nbformat.read(notebook.path, as_version=4).cells:
        texts[cell.cell_type] += f"{cell.source}\n\n"
    minutes = len(texts["markdown"].split()) / WORDS_A_MINUTE
    minutes += texts["code"].rstrip("\n").count("\n") / CODE_LINES_A_MINUTE
    found = _QUESTION.search(texts["markdown"])
    question = re.sub(r"[*`]|\[(.+?)\]\(.+?\)", r"\1", found[1]) if found else ""
    drawn = (run / "figures" / f"{name}.png" for name in _FIGURE.findall(texts["code"]))
    main = next((path for path in drawn if path.exists()), None)
    picture = main and base64.b64encode(main.read_bytes()).decode()
    return {
        "notebook": notebook,
        "question": question,
        "minutes": math.ceil(minutes),
        "is_finished": stages.read_marker(run, notebook.name) is not None,
        "figure": _figure(picture, _caption(main)) if main else "",
    }


def _body(run: Path, notebook: stages.Notebook) -> str:
    """Return the notebook's cells as HTML: math as MathML, figures with captions."""
    import nbformat
    from nbconvert import HTMLExporter

    content = nbformat.read(run / "notebooks" / notebook.path.name, as_version=4)
    # papermill's next cell has the parameters used
    cells = (c for c in content.cells if "parameters" not in c.metadata.get("tags", ()))
    content.cells = list(cells)
    for cell in content.cells:
        names = iter(_FIGURE.findall(cell.source))
        for output in cell.get("outputs", ()):
            picture = output.get("data", {}).get("image/png")
            if picture and (name := next(names, None)):
                caption = _caption(run / "figures" / f"{name}.png")
                output.data = {"text/html": _figure(picture, caption)}
    plain = {"exclude_input_prompt": True, "exclude_output_prompt": True}
    exporter = HTMLExporter(template_name="basic", **plain)
    exporter.register_filter("markdown2html", _markdown)
    body, _ = exporter.from_notebook_node(content)
    body = re.sub(r'(href="[\w./-]*?)\.ipynb(?=[#"])', r"\1.html", body)
    body = re.sub(r'<a href="\.\./[^"]*">(.*?)</a>', r"\1", body)  # sources stay behind
    return _tables(body)


def _tables(page: str) -> str:
    """Let tables fit a phone and paper: long labels may break, prose gets room."""
    label = r"(<t[hd]\b[^>]*>)([\w/]*_\w+)(?=</t[hd]>)"
    page = re.sub(label, lambda m: m[1] + m[2].replace("_", "_<wbr>"), page)
    return re.sub(r"<td(?=[^>]*>[^<]{50,})", "<td data-prose", page)


def _markdown(text: str) -> str:
    """Return Markdown as HTML, its ``$…$`` and ``$$…$$`` as MathML.

    Markdown would eat the ``_`` and ``|`` of formulas: they are set aside meanwhile.
    """
    from nbconvert.filters import markdown2html

    formulas: list[str] = []

    def set_aside(found: re.Match) -> str:
        if found["code"]:
            return found[0]
        display = "block" if found["block"] else "inline"
        formulas.append(_mathml((found["block"] or found["inline"]).strip(), display))
        return f"\ue000{len(formulas) - 1}\ue001"

    page = markdown2html(_MATH.sub(set_aside, text))
    return re.sub("\ue000(\\d+)\ue001", lambda found: formulas[int(found[1])], page)


def _mathml(latex: str, display: str) -> str:
    from latex2mathml import converter

    try:
        mathml = converter.convert(latex, display=display)
    except Exception:  # its errors share no class; a typo must not cost the page
        return f"<code>{html.escape(latex)}</code>"
    space = r'\g<0><mspace width="0.17em"/>'
    mathml = re.sub("<mi>(log|exp|max|min)</mi>", space, mathml)
    return mathml.replace("<math ", f'<math alttext="{html.escape(latex)}" ', 1)


def _figure(picture: str, caption: str) -> str:
    """Return a PNG in base64 with its caption, which is its alternative text, too."""
    source, said = "".join(picture.split()), html.escape(caption)
    image = f'<img alt="{said}" src="data:image/png;base64,{source}">'
    return f"<figure>{image}<figcaption>{said}</figcaption></figure>"


def _caption(picture: Path) -> str:
    sidecar = picture.with_suffix(".json")
    return artifacts.read_json(sidecar)["caption"] if sidecar.exists() else picture.stem
