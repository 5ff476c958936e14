"""The leaderboard in a real browser: Chromium, from file://, as people meet it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_leaderboard import add_run, with_final

from audiocl_bench.report.leaderboard import site, svg
from audiocl_bench.results import ResultsDir

pytestmark = pytest.mark.slow

CHROMIUM = Path("/usr/bin/chromium")
NARROW, WIDE = {"width": 360, "height": 740}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with a long method name, settings, an incomplete entry, a reference and a run set aside."""
    folder = ResultsDir(tmp_path_factory.mktemp("browser") / "results")
    for order in range(3):
        add_run(folder, "ncm", order, right=with_final(50))
        add_run(folder, "ranpac", order, right=with_final(80), settings={"ridge": 1.0, "search": "session"})
        add_run(folder, "joint", order, whole=True)
    add_run(folder, "ranpac", right=with_final(90), settings={"ridge": 2.0, "search": "x" * 60})
    add_run(folder, "a-method-with-quite-a-long-name-that-has-no-blank", right=with_final(10))
    add_run(folder, "leaky", audit_passed=False)
    add_run(folder, "ncm", own_data=True, benchmark="mine")
    return site.build([folder], folder.path.parent / "site").out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, headless."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install 'audiocl[test]')")
    if not CHROMIUM.is_file() or shutil.which(str(CHROMIUM)) is None:
        pytest.skip("needs /usr/bin/chromium (apt-get install chromium)")
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield started
        started.close()


class Visit:
    """A page being looked at, with every message of its console and every address it asked for."""

    def __init__(self, context: Any) -> None:
        self.page = context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def names(self) -> list[str]:
        """Method names of the ranking's visible rows, in order."""
        rows = self.page.locator("table.ranking tbody:not(.references) tr:visible .method")
        return [text.strip() for text in rows.all_inner_texts()]

    def finals(self) -> list[float]:
        """Final accuracies of the ranking's visible rows, in order."""
        cells = self.page.locator("table.ranking tbody:not(.references) tr:visible td.final .strong")
        return [float(text.split()[0]) for text in cells.all_inner_texts()]


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Return a function that opens a page; afterwards nothing was said, and nothing outside asked for."""
    contexts, visits = [], []

    def to(path: Path, **options: Any) -> Visit:
        context = browser.new_context(**{"viewport": WIDE, **options})
        contexts.append(context)
        visits.append(Visit(context))
        visits[-1].page.goto(path.as_uri())
        return visits[-1]

    yield to
    for context in contexts:
        context.close()
    for each in visits:
        assert each.said == []
        assert all(url.startswith("file://") for url in each.asked), each.asked


def board_of(root: Path) -> Path:
    [board] = root.glob("boards/esc50-*.html")
    return board


def every_kind(root: Path) -> list[Path]:
    """One page of every kind, and both kinds of run."""
    compare = sorted(root.glob("compare/*/*.html"))
    runs = [next(root.glob(pattern)) for pattern in ("runs/ncm*", "runs/joint*", "runs/leaky*", "runs/a_method*")]
    return [root / "index.html", root / "about.html", board_of(root), compare[0], *runs]


def test_sorting_by_click_and_by_keyboard(root: Path, visit: Any) -> None:
    seen = visit(board_of(root))
    page = seen.page
    assert seen.finals() == [90, 80, 50, 10]
    ranking = page.locator("table.ranking")
    final = ranking.get_by_role("columnheader", name="Final accuracy", exact=True)
    assert final.get_attribute("aria-sort") == "none"
    final.get_by_role("button").click()
    assert final.get_attribute("aria-sort") == "descending", "the best first: more is better"
    assert seen.finals() == [90, 80, 50, 10]
    final.get_by_role("button").click()
    assert final.get_attribute("aria-sort") == "ascending"
    assert seen.finals() == [10, 50, 80, 90]
    # The keyboard alone: Tab to the next header, Enter and Space press it.
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.tagName") == "BUTTON"
    method = ranking.get_by_role("columnheader", name="Method", exact=True)
    assert method.get_by_role("button").evaluate("button => button === document.activeElement")
    page.keyboard.press("Enter")
    assert method.get_attribute("aria-sort") == "ascending"
    assert final.get_attribute("aria-sort") == "none"
    names = seen.names()
    assert names == sorted(names)
    page.keyboard.press("Space")
    assert seen.names() == names[::-1]
    # References stay below whatever is sorted.
    assert page.locator("table.ranking tr .method").last.inner_text() == "joint"


def test_filtering(root: Path, visit: Any) -> None:
    seen = visit(board_of(root))
    page = seen.page
    search = page.get_by_label("Show methods that contain")
    status = page.locator("#shown")
    assert status.inner_text() == "4 of 4 entries"
    search.fill("RanPAC")
    assert seen.names() == ["ranpac", "ranpac"]
    assert status.inner_text() == "2 of 4 entries"
    search.fill("ranpac search session")
    assert seen.finals() == [80]
    search.fill("")
    page.get_by_label("complete entries only").check()
    assert seen.names() == ["ranpac", "ncm"]
    search.fill("nothing of that name")
    assert status.inner_text() == "0 of 4 entries"


def test_comparing_two_methods(root: Path, visit: Any) -> None:
    seen = visit(board_of(root))
    page = seen.page
    page.get_by_label("First").select_option(label="ncm")
    page.get_by_label("Second").select_option(label="ncm")
    page.get_by_role("button", name="Compare").click()
    assert page.locator("#picked").inner_text() == "Pick two different entries."
    options = page.get_by_label("Second").locator("option").all_inner_texts()
    page.get_by_label("Second").select_option(label=options[1])
    page.get_by_role("button", name="Compare").click()
    page.wait_for_url(re.compile("/compare/"))
    assert "against ncm" in page.locator("h1").inner_text()
    assert "+30.00" in page.locator(".verdict").inner_text()
    classes = page.locator("table", has=page.locator("#class-caption"))
    assert classes.locator("tbody tr").count() == 4
    classes.get_by_role("columnheader", name="Class").get_by_role("button").click()
    assert classes.locator("tbody th").all_inner_texts() == ["bell", "cat", "drum", "engine"]


@pytest.mark.parametrize("viewport", [NARROW, WIDE], ids=["phone", "desktop"])
@pytest.mark.parametrize("script", [True, False], ids=["script", "no-script"])
def test_no_page_is_wider_than_the_window(root: Path, visit: Any, viewport: dict[str, int], script: bool) -> None:
    for path in every_kind(root):
        page = visit(path, viewport=viewport, java_script_enabled=script).page
        wide, window = page.locator("html").evaluate("node => [node.scrollWidth, node.clientWidth]")
        assert wide <= window, path


def test_pages_are_complete_without_the_script(root: Path, visit: Any) -> None:
    seen = visit(board_of(root), java_script_enabled=False)
    assert seen.names() == ["ranpac", "ranpac", "ncm", "a-method-with-quite-a-long-name-that-has-no-blank"]
    assert seen.page.locator("form:visible").count() == 0, "what needs the script is not shown"
    assert seen.page.locator("th button").count() == 0
    assert seen.page.locator("table.versus a").count() >= 5


CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const part = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("body *:not(svg *)")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility()) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${node.tagName} ${node.className} ${node.textContent.trim().slice(0, 20)} ${ratio}`);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark(root: Path, visit: Any, scheme: str) -> None:
    backgrounds = set()
    for path in every_kind(root):
        page = visit(path, color_scheme=scheme).page
        assert page.evaluate(CONTRAST) == [], path
        backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    [colour] = backgrounds
    brightness = sum(map(int, re.findall(r"\d+", colour))) / 3
    assert (brightness < 60) == (scheme == "dark")


HEAT_CONTRAST = """() => [...document.querySelectorAll("svg.heat text[class^=n]")].map((text) => {
  const rgb = (node) => getComputedStyle(node).fill.match(/[\\d.]+/g).map(Number);
  const light = (colour) => colour.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const [a, b] = [light(rgb(text)), light(rgb(text.previousElementSibling))];
  return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), text.textContent];
}).filter(([ratio]) => ratio < 4.5)"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_in_the_heat_map_can_be_read(tmp_path: Path, root: Path, visit: Any, scheme: str) -> None:
    """Every step of the scale, in one map of 11 sessions."""
    matrix = np.full((11, 11), np.nan)
    for t in range(11):
        matrix[t, : t + 1] = 10.0 * t
    style = (root / "static" / "site.css").as_uri()
    page = tmp_path / "heat.html"
    page.write_text(f"<!doctype html><link rel='stylesheet' href='{style}'>{svg.heat_map(matrix, told='x')}")
    assert visit(page, color_scheme=scheme).page.evaluate(HEAT_CONTRAST) == []


def test_the_keyboard_reaches_everything(root: Path, visit: Any) -> None:
    seen = visit(board_of(root), viewport=NARROW)
    page = seen.page
    page.keyboard.press("Tab")
    skip = page.locator("a.skip")
    assert skip.evaluate("link => link === document.activeElement")
    assert skip.bounding_box()["y"] >= 0, "the skip link is seen once it has the focus"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    focused = page.locator(".scroll").first
    focused.focus()
    before = focused.evaluate("node => node.scrollLeft")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("before => document.activeElement.scrollLeft > before", arg=before)
    # Whatever has the focus shows it.
    for _ in range(12):
        page.keyboard.press("Tab")
        style = page.evaluate("(() => { const s = getComputedStyle(document.activeElement); return s.outlineStyle })()")
        assert style != "none", page.evaluate("document.activeElement.outerHTML.slice(0, 80)")


def test_a_screen_reader_is_told_what_drawings_and_tables_show(root: Path, visit: Any) -> None:
    page = visit(board_of(root)).page
    assert page.get_by_role("img", name="from 100.0 % after session 0 to 90.0 % after session 1").count() >= 1
    assert page.get_by_role("table", name=re.compile("^Final accuracy in percent")).count() == 1
    assert page.get_by_role("region", name=re.compile("^Final accuracy in percent")).count() == 1
    assert page.get_by_role("rowheader", name=re.compile("^ncm")).count() >= 1
    assert page.get_by_role("link", name=re.compile(r"^ranpac .* minus ncm: \+\d+\.\d points")).count() >= 1
    tree = visit(next(root.glob("runs/ncm*"))).page
    assert tree.get_by_role("img").count() == 2
    assert tree.get_by_role("heading", level=1).count() == 1
