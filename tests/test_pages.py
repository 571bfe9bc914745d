"""The pages: math, captions, navigation, and how a real browser lays them out."""

import base64
import html
import json
import re
import shutil
import subprocess

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from conftest import REPOSITORY
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from test_stages import PARAMETERS

from cotspec import artifacts, pages, stages
from cotspec.figures import style
from cotspec.report.claims import CLAIMS

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
LONG = "reasoning_" * 30
MATH = (
    r"The loss is $\sum_i p_i \log\frac{p_i}{q_i}$, or $p'_i | q_*$ and $q_*$."
    "\n\n"
    r"$$1 - \binom{n-c}{k} / \binom{n}{k}$$"
    "\n\n"
    r"Price: `$x$`, $5 and $6. [Next](01_second.ipynb#top)"
    "\n\nMade by [`x.py`](../cotspec/x.py).\n"
    "\n\n"
    "| loss | formula |\n|---|---|\n| KL | $|p_i - q_i| + \\frac{1}{2}$ |\n"
    "\n<details><summary>Solution</summary>\n\nIt *folds*.\n\n</details>\n"
)


CAPTION = 'Accuracy <before> & "after", in %.'


def saved_chart(folder):
    """Save a figure; return the output of the cell that shows it."""
    chart, data = Figure(figsize=(6.9, 2)), pd.DataFrame({"x": [1, 2]})
    chart.subplots().plot([1, 2])
    paths = style.save_figure(chart, folder, "00_chart", data=data, caption=CAPTION)
    picture = base64.b64encode(paths["png"].read_bytes()).decode()
    return new_output("display_data", data={"image/png": picture})


@pytest.fixture
def run(tmp_path):
    """Two notebooks of a run: the first with all that a page must show well."""
    folder = tmp_path / "runs" / "smoke"
    chart = saved_chart(folder / "figures")
    columns = "".join(f"<th>column_number_{n}</th>" for n in range(30))
    table = {"text/html": f"<table><tr>{columns}</tr></table>"}
    progress = new_output("stream", name="stderr", text="training: 100%|███| 480/480")
    parameters = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    injected = new_code_cell("SEED = 7", metadata={"tags": ["injected-parameters"]})
    drawing = 'stage.figure(\n    "00_chart",\n    chart)'
    question = f"# 0 · What is *x*?\n\n**Question.** Is `x` seen?\n\n{LONG}"
    shown = [progress, new_output("display_data", data=table)]
    first = [
        new_markdown_cell(question),
        parameters,
        injected,
        new_markdown_cell(MATH),
        new_code_cell(drawing, outputs=[chart]),
        new_code_cell(f"wide = '{LONG}'", outputs=shown),
    ]
    told = {"image/png": {"alt": "Two paths"}}  # of a picture without a caption
    plain = new_output("display_data", data=dict(chart.data), metadata=told)
    second = [new_markdown_cell("# 1 · Second\n\nText."), parameters]
    second.append(new_code_cell("Image()", outputs=[plain]))
    for name, cells in (("00_first", first), ("01_second", second)):
        path = folder / "notebooks" / f"{name}.ipynb"
        for target in (path, tmp_path / "notebooks" / path.name):
            target.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(new_notebook(cells=cells), target)
    artifacts.write_text(folder / "report/REPORT.md", f"# Report\n\n{LONG}\n")
    shutil.copy(path, tmp_path / "notebooks/02_missing.ipynb")  # not run
    pages.write_pages(folder, stages.load_series(tmp_path))
    return folder


def read(run, name):
    return (run / "html" / f"{name}.html").read_text("utf-8")


def visible(page):
    """Return a page's text without code, styles and tags."""
    page = re.sub(r"(?s)<(style|script|code|pre)\b.*?</\1>", "", page)
    return html.unescape(re.sub(r"(?s)<[^>]*>", "", page))


def test_formulas_are_mathml_and_dollars_of_prose_and_code_stay(run):
    page = read(run, "00_first")
    assert page.count("<math ") == 5
    assert page.count('display="block"') == 1
    assert not re.search(r"\\(frac|sum|binom|log)|\$\\", visible(page))
    assert "<code>$x$</code>, $5 and $6." in page
    assert page.count("</td>") == 2  # a bar in a formula makes no table column
    assert 'href="01_second.html#top"' in page


def test_every_formula_of_the_series_is_converted():
    for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                page = pages._markdown(cell.source)
                found = [m for m in pages._MATH.finditer(cell.source) if not m["code"]]
                assert page.count("<math ") == len(found), path.name
                assert not re.search(r"\$\\|\\frac", visible(page)), path.name
                assert not re.search(r"<mi>\\", page), path.name
    # One with an error is shown as code, and costs no page.
    assert r"see <code>\frac{</code>" in pages._markdown(r"see $\frac{$ here")


def test_pictures_carry_their_caption_as_alt_text_and_below(run):
    for name in ("00_first", "index"):
        page = BeautifulSoup(read(run, name), "html.parser")
        assert page.img["src"].startswith("data:image/png;base64,")
        assert page.img["alt"] == page.figcaption.text == CAPTION
    page = BeautifulSoup(read(run, "01_second"), "html.parser")
    assert page.img["alt"] == "Two paths" and page.figcaption is None


def test_labels_may_break_solutions_stay_folded_and_only_used_parameters_show(run):
    page = read(run, "00_first")
    assert "<th>column_<wbr>number_<wbr>0</th>" in page
    assert "column_number_29" in visible(page)
    [details] = BeautifulSoup(page, "html.parser").select("details")
    assert "It folds." in details.text and not details.has_attr("open")
    page = visible(re.sub("</?(span|pre)[^>]*>", "", page))
    assert "SEED = 7" in page and "SEED = 0" not in page


def test_the_folder_stands_alone_and_every_link_in_it_leads_somewhere(run, tmp_path):
    alone = shutil.copytree(run / "html", tmp_path / "alone")
    for path in alone.glob("*.html"):
        page = path.read_text("utf-8")
        assert '<meta name="viewport"' in page and "<title>" in page
        for target in re.findall(r'(?:href|src)="([^"]*)"', page):
            file = target.partition("#")[0]
            if file and not target.startswith("data:"):
                assert "/" not in file and (alone / file).exists(), (path.name, target)


def test_index_shows_question_time_and_state_and_pages_lead_on_and_back(run):
    assert "Made by <code>x.py</code>." in read(run, "00_first")
    index = read(run, "index")
    assert "Is x seen?" in index and "1 min to read" in index
    assert index.count("not finished") == 3 and "None" not in index
    assert "02_missing.html" not in index
    first, second, missing = map(int, re.findall(r"(\d+) min to read ·", index))
    assert f"{first + second + missing} min to read in all." in index
    assert 'rel="next" href="01_second.html"' in read(run, "00_first")
    assert 'rel="prev" href="00_first.html"' in read(run, "01_second")
    assert 'rel="next"' not in read(run, "01_second")
    assert 'href="index.html"' in read(run, "REPORT")


def test_index_begins_with_the_verdicts_once_there_are_some(run):
    assert "What came of" not in read(run, "index")
    claims = (
        'claim,statement,verdict\nC1,"a < b, at every size",undecided\nC7,c,opposite'
    )
    (run / "report/claims.csv").write_text(claims)
    for folder in (run, run.parents[1]):
        made = f"{CLAIMS[0].notebook}.ipynb"
        shutil.copy(run / "notebooks/01_second.ipynb", folder / "notebooks" / made)
    pages.write_pages(run, stages.load_series(run.parents[1]))
    index = read(run, "index")
    said = "C1</a>, a &lt; b, at every size: <b>undecided</b></li>"
    assert f'<li><a href="{CLAIMS[0].notebook}.html">{said}' in index
    assert "<li>C7, c: <b>opposite</b></li>" in index


PROBE = """<!doctype html><body><script>
addEventListener("load", () => {
  const inner = document.querySelector("iframe");
  const page = inner.contentDocument, width = inner.contentWindow.innerWidth;
  const scrolls = e => e && (["auto", "scroll"].includes(getComputedStyle(e).overflowX)
                             || scrolls(e.parentElement));
  const out = [...page.querySelectorAll("main *")].filter(e => !scrolls(e)
      && e.getBoundingClientRect().right > width + 1).map(e => e.tagName);
  const noAlt = [...page.images].filter(i => !i.alt || !i.naturalWidth).length;
  document.body.dataset.seen = JSON.stringify({width, out, noAlt,
      scroll: page.scrollingElement.scrollWidth, text: page.body.innerText});
});
</script><iframe src="PAGE" style="width:WIDTHpx;height:900px;border:0"></iframe>"""


def browser(*arguments):
    flags = "--headless --no-sandbox --disable-gpu --virtual-time-budget=5000"
    command = [BROWSER, *flags.split(), "--allow-file-access-from-files", *arguments]
    return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout


@pytest.mark.skipif(not BROWSER, reason="no chromium here: layout was not checked")
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["index", "00_first", "REPORT"])
def test_in_a_browser_no_text_is_scrolled_sideways(run, name, width):
    probe = run / "html" / "probe.html"
    # Inside a frame, since a browser window cannot be as narrow as a phone.
    page = PROBE.replace("PAGE", f"{name}.html").replace("WIDTH", str(width))
    probe.write_text(page)
    dom = browser("--dump-dom", "--window-size=1400,1000", probe.as_uri()).decode()
    seen = json.loads(html.unescape(re.search(r'data-seen="([^"]*)"', dom)[1]))
    assert seen["width"] == width and seen["scroll"] <= width
    assert seen["out"] == [] and seen["noAlt"] == 0
    assert not re.search(r"\\frac|\\sum|\$\\", seen["text"])


@pytest.mark.skipif(not BROWSER, reason="no chromium here: printing was not checked")
def test_prints(run, tmp_path):
    target = tmp_path / "page.pdf"
    browser(f"--print-to-pdf={target}", (run / "html/00_first.html").as_uri())
    assert target.read_bytes().startswith(b"%PDF")
