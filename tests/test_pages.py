"""The site: mathematics, alt texts, captions, links, and no scrolling sideways."""

import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest

from cotspec import artifacts, pages, stages

REPOSITORY = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
    "awAAAABJRU5ErkJggg=="
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Pages of the real notebooks, with made-up pictures and wide tables as outputs."""
    run = tmp_path_factory.mktemp("runs") / "smoke"
    series = stages.load_series(REPOSITORY)
    for notebook in series:
        content = nbformat.read(notebook.path, as_version=4)
        for cell in content.cells:
            if cell.cell_type == "code" and "figure(" in cell.source:
                picture = nbformat.v4.new_output("display_data", {"image/png": PIXEL})
                cell.outputs = [picture]
                for name in re.findall(r'figure\(\s*"(\w+)"', cell.source):
                    caption = {"caption": f"what {name} shows"}
                    artifacts.write_json(run / "figures" / f"{name}.json", caption)
        wide = "<table><tr>" + "<td>a_long_name_of_a_column</td>" * 30 + "</tr></table>"
        content.cells[-1].outputs = [
            nbformat.v4.new_output("display_data", {"text/html": wide})
        ] * (content.cells[-1].cell_type == "code")
        path = run / "notebooks" / f"{notebook.name}.ipynb"
        artifacts.write_bytes(path, nbformat.writes(content).encode())
    page = b"<html><style></style>the report</html>"
    artifacts.write_bytes(run / "report/REPORT.html", page)
    pages.write_pages(run, series)
    return run / "html"


def visible(page):
    text = re.sub(r"<(style|script)\b.*?</\1>", "", page.read_text(), flags=re.S)
    text = re.sub(r"<(pre|code)\b.*?</\1>", "", text, flags=re.S)
    return re.sub(r"<[^>]+>", " ", text)


def test_mathematics_is_drawn_and_no_latex_is_left(site):
    assert len(list(site.glob("*.html"))) == 14  # twelve, the index, the report
    for page in site.glob("*.html"):
        assert not re.search(r"\\frac|\\sum|\$\\|FORMULA\d", visible(page)), page
    five = (site / "05_distillation.html").read_text()
    assert five.count("<mfrac>") >= 4 and "<math" in five


@pytest.mark.parametrize(
    ("text", "formulas"),
    [
        ("costs $5 in all", 0),
        ("`$x$` and `a $b`", 0),
        ("with $p$ and $q$", 2),
        ("$$\\frac{a}{b}$$", 1),
    ],
)
def test_dollars_are_money_and_code_is_code(text, formulas):
    found = []
    marked = pages.set_aside_math(text, found)
    assert len(found) == formulas
    back = pages.put_back_math(marked, found)
    assert back == text if not formulas else back.count("<math") == formulas


def test_every_picture_has_its_caption_as_text_and_below(site):
    for page in site.glob("*.html"):
        images = re.findall(r"<img[^>]*>", page.read_text())
        assert all(re.search(r'alt="[^"]{5,}"', image) for image in images), page
    assert "what figure3a shows</p>" in (site / "07_ability_tradeoff.html").read_text()


def test_pages_lead_on_and_back_and_the_parameters_stand_once(site):
    text = (site / "05_distillation.html").read_text()
    assert 'href="04_token_alignment.html"' in text
    assert 'href="06_evaluation.html"' in text and 'href="index.html"' in text
    assert "<title>5 · One student is specialized</title>" in text
    assert ".ipynb" not in re.sub(r"<pre.*?</pre>", "", text, flags=re.S)
    assert 'href="index.html"' in (site / "report.html").read_text()
    index = (site / "index.html").read_text()
    assert index.count('class="lesson"') == 12 and "min to read" in index
    assert "../" not in index  # the folder can be published alone


WIDTH = (
    "<script>window.onload = () => { document.title = 'WIDTH ' + "
    "document.scrollingElement.scrollWidth + ' ' + window.innerWidth; }</script></body>"
)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium found")
@pytest.mark.parametrize("width", [1280, 500])  # headless Chromium has no less
def test_no_page_scrolls_sideways_in_a_browser(site, width, tmp_path):
    for page in site.glob("*.html"):
        copy = tmp_path / page.name
        copy.write_text(page.read_text().replace("</body>", WIDTH))
        done = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
            + [f"--window-size={width},2000", copy.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
        )
        found = re.search(r"<title>WIDTH (\d+) (\d+)", done.stdout)
        if found:  # the report made up here has no body
            assert int(found[1]) <= int(found[2]), page
