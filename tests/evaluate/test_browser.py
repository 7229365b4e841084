"""Reports in a real browser: no errors or requests, nothing cut off, everything legible in both colour schemes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import Browser, find_chromium, start_browser
from robustness_results import COMPARISONS, make_result, make_trio
from shiftnorm.evaluate.html_report import write_report
from shiftnorm.evaluate.seed_groups import compare_groups, group_results

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="needs Chromium: apt-get install chromium"),
]

# What sticks out to the right of the page, or of a cell of a heat table. What scrolls inside its own box may.
OVERFLOW = """
[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll') || e.matches('.scroll'))
  .filter(e => e.checkVisibility() && e.getClientRects().length && !(e instanceof SVGElement))
  .filter(e => e.getBoundingClientRect().right > innerWidth + 0.5 || (e.matches('td') && e.scrollWidth > e.clientWidth))
  .map(e => e.outerHTML.slice(0, 120))
"""

# Contrast after WCAG 2 of every piece of text to the nearest ground behind it; what is below 4.5.
FAINT = """
(() => {
  const channels = c => { const [r, g, b, a] = c.match(/[\\d.]+/g).map(Number); return [r, g, b, a ?? 1] }
  const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
  const light = c => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2])
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  let seen = 0
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement
    if (!node.data.trim() || element.localName === 'title' || !element.checkVisibility()) continue
    const style = getComputedStyle(element)
    const ink = channels(element instanceof SVGElement ? style.fill : style.color)
    let ground = element
    while (ground && channels(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement
    const paper = ground ? channels(getComputedStyle(ground).backgroundColor) : [255, 255, 255]
    const [high, low] = [light(ink), light(paper)].sort((a, b) => b - a)
    const ratio = (high + 0.05) / (low + 0.05)
    seen += 1
    if (ratio < 4.5) found.push(`${node.data.trim().slice(0, 30)}: ${ratio.toFixed(2)}`)
  }
  return [seen, found]
})()
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with start_browser(find_chromium() or "") as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    bare = make_result("bare", corruptions=(), classes=[], class_errors={}, calibration={}, examples=[])
    groups = {
        name: [(f"{name}-seed{seed}", make_result(f"{name}{seed}", base=8.0 + seed, step=step)) for seed in range(3)]
        for name, step in (("BatchNorm", 7.0), ("IBN <b>a</b> & co", 4.0))
    }
    rows = compare_groups(group_results(groups))
    runs = [run for row in rows for run in row.runs.values()]
    warned = make_result("photographs", side=96, warnings=["The inputs look as if they were normalized twice."])
    return {
        "one": write_report(warned, folder / "one.html"),
        "three": write_report(make_trio(), folder / "three.html", comparisons=COMPARISONS),
        "bare": write_report(bare, folder / "bare.html"),
        "groups": write_report(runs, folder / "groups.html", groups=rows),
    }


@pytest.mark.parametrize("name", ["one", "three", "bare", "groups"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
def test_a_page_is_legible(browser: Browser, pages: dict[str, Path], name: str, dark: bool, width: int) -> None:
    page = browser.open(pages[name], width=width, dark=dark, phone=width < 500)
    assert page.complaints == [] and page.requests == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(OVERFLOW) == []
    seen, faint = page.evaluate(FAINT)
    assert seen > 20 and faint == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) is dark
    cells = page.evaluate("document.querySelectorAll('.heat td[class^=h]').length")
    assert cells == {"one": 15 * 6, "three": 3 * 15 * 6, "bare": 0, "groups": 2 * 15 * 6}[name]


@pytest.mark.parametrize("name", ["three", "groups"])
def test_names_stay_text(browser: Browser, pages: dict[str, Path], name: str) -> None:
    page = browser.open(pages[name])
    assert page.evaluate("document.querySelectorAll('script, link, iframe, object, base, form').length") == 0
    names = page.evaluate("[...document.querySelectorAll('bdi')].map(e => e.textContent)")
    assert "IBN <b>a</b> & co" in names
    assert page.evaluate("document.querySelectorAll('bdi *').length") == 0


def test_pictures_are_shown(browser: Browser, pages: dict[str, Path]) -> None:
    page = browser.open(pages["one"])
    sizes = page.evaluate("[...document.images].map(e => [e.complete, e.naturalWidth, e.alt])")
    assert len(sizes) == 1 + 15 * 3 and all(done and side == 96 for done, side, _ in sizes)
    assert sizes[1][2] == "gaussian noise, severity 1"


@pytest.mark.parametrize("name", ["one", "three", "groups"])
def test_a_page_prints(browser: Browser, pages: dict[str, Path], name: str) -> None:
    # 182 mm, what the margins leave of A4
    page = browser.open(pages[name], width=688, dark=True)
    page.emulate("print", dark=True)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 252)"
    wide = OVERFLOW.replace("!e.closest('.scroll') || e.matches('.scroll')", "true")
    assert page.evaluate(wide) == []
    assert page.evaluate(FAINT)[1] == []
    kept = page.evaluate("getComputedStyle(document.querySelector('.heat .h5, .heat .h6')).printColorAdjust")
    assert kept == "exact"
    document = page.print()
    assert document.startswith(b"%PDF-")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", document)) <= 9


def test_the_checks_see_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "bad.html"
    file.write_text(
        "<meta name=viewport content='width=device-width'><main><p style='color:#999;background:#fff'>faint</p>"
        "<div style='width:500px'>wide</div><img src='gone.png'></main><script>console.error('broken')</script>"
    )
    page = browser.open(file, width=360)
    assert any("broken" in text for text in page.complaints)
    assert len(page.requests) == 1 and page.requests[0].endswith("gone.png")
    assert any("wide" in text for text in page.evaluate(OVERFLOW))
    assert page.evaluate(FAINT)[1] == ["faint: 2.85"]
