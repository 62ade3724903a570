"""report.html in a real browser: it opens alone, and keys, clicks, phone and themes work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from save_deploy.runtime.html import Section, Table, write_html
from save_deploy.runtime.html.frames import compared
from tests.runtime.html_samples import NASTY, Browser, browser_missing, open_browser, sample_report

pytestmark = pytest.mark.slow
needs_browser = pytest.mark.skipif(
    browser_missing() is not None, reason=f"not installed: apt-get install {browser_missing()}"
)
LEFT, RIGHT = "\ue012", "\ue014"
VIEWER = "document.querySelector('#viewer').dataset"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Browser:
    """A report of two datasets, open at 1280 px with a drawn frame and an empty log."""
    write_html(tmp_path / "report.html", sample_report(datasets=("scenes", "stamps")))
    browser.size(1280, 900)
    browser.media(prefers_color_scheme="light")
    browser.log("browser")
    browser.requests()
    browser.open(tmp_path / "report.html")
    browser.until(f"{VIEWER}.frame !== undefined")
    return browser


def complaints(browser: Browser) -> list[str]:
    return [line["message"] for line in browser.log("browser")]


@pytest.mark.slow
@needs_browser
def test_browser_opens_it_alone(page: Browser, tmp_path: Path) -> None:
    assert page.requests() == [(tmp_path / "report.html").as_uri()]
    page.click("#download")
    page.click("#copy")
    page.until("document.querySelector('#said').textContent", "copied")
    page.click("#play")
    assert complaints(page) == []


@pytest.mark.slow
@needs_browser
def test_browser_complains_when_something_is_loaded(browser: Browser, tmp_path: Path) -> None:
    """The twin: a picture from elsewhere is stopped by the page's own policy, and seen here."""
    write_html(tmp_path / "report.html", sample_report())
    text = (tmp_path / "report.html").read_text()
    (tmp_path / "bad.html").write_text(
        text.replace("<main>", '<main><img src="http://127.0.0.1:9/x.png"><script>1</script>')
    )
    browser.log("browser")
    browser.open(tmp_path / "bad.html")
    found = " ".join(complaints(browser))
    assert "img-src" in found and "script-src" in found
    free = text.replace("Content-Security-Policy", "nothing")
    (tmp_path / "free.html").write_text(
        free.replace("<main>", '<main><img src="http://127.0.0.1:9/x.png">')
    )
    browser.open(tmp_path / "free.html")
    assert "http://127.0.0.1:9/x.png" in browser.requests()


@pytest.mark.slow
@needs_browser
def test_browser_keys(page: Browser) -> None:
    page.click("#canvas")
    page.keys("z")  # a click zooms in: out again
    page.until("document.querySelector('#zoom').getAttribute('aria-pressed')", "false")
    first = page.js(f"{VIEWER}.frame")
    page.keys(RIGHT)
    page.until("document.querySelector('#place').textContent", "2 of 8")
    assert page.js(f"{VIEWER}.frame") != first
    page.keys(LEFT, LEFT)
    page.until("document.querySelector('#place').textContent", "1 of 8")
    for key, layer in zip(
        "123456", ("frame", "truth", "reference", "row", "flips", "near"), strict=True
    ):
        page.keys(key)
        page.until(f"{VIEWER}.layer", layer)
    page.keys(" ")
    page.until(f"{VIEWER}.layer", "reference")
    page.keys(" ")
    page.until(f"{VIEWER}.layer", "row")
    row = page.js(f"{VIEWER}.row")
    page.keys("b")
    page.until(f"{VIEWER}.row !== '{row}'")
    assert complaints(page) == []


@needs_browser
def test_browser_draws_the_flips(page: Browser) -> None:
    """Pixels of the canvas in the two colors, as many as the data counts."""
    count = """(() => {
      const canvas = document.querySelector("#canvas"), times = canvas.width / 64;
      const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      const found = [0, 0];
      for (let y = 0; y < 64; y++) for (let x = 0; x < 64; x++) {
        const at = (v) => Math.floor((v + 0.5) * times), i = 4 * (at(y) * canvas.width + at(x));
        const is = (r, g, b) => pixels[i] === r && pixels[i + 1] === g && pixels[i + 2] === b;
        if (is(255, 159, 0)) found[0]++;
        if (is(60, 165, 255)) found[1]++;
      }
      return found;
    })()"""
    assert page.js(f"{VIEWER}.layer") == "row"  # it opens on the masks
    page.click("#layers [data-layer=flips]")
    page.until(f"{VIEWER}.layer", "flips")
    name, row = page.js(f"[{VIEWER}.frame, {VIEWER}.row]")
    (frame,) = [f for f in sample_report(datasets=("scenes", "stamps")).frames if f.name == name]
    found = compared(frame)[row]
    assert found.on + found.off > 0
    assert page.js(count) == [found.on, found.off]


@pytest.mark.slow
@needs_browser
def test_browser_click_and_choice(page: Browser) -> None:
    page.click("#strip button:nth-child(3)")
    page.until("document.querySelector('#place').textContent", "3 of 8")
    page.click("#layers [data-layer=truth]")
    page.until(f"{VIEWER}.layer", "truth")
    page.keys(RIGHT)  # the keys work after a click on a button
    page.until("document.querySelector('#place').textContent", "4 of 8")
    page.click("#frame-rows tbody tr:nth-child(2) button")
    page.until(f"{VIEWER}.row", "onnxruntime fp16")
    page.click("#datasets button:nth-child(3)")
    page.until("document.querySelector('#frame-dataset').textContent", "stamps")
    seen = "[...document.querySelectorAll('{}')].filter(e => e.checkVisibility()).length"
    assert page.js(seen.format("#rows tbody tr")) == 3
    assert page.js(seen.format(".charts figure")) == 2  # latency, which is of all, and its M_J
    page.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.js(seen.format(".charts figure")) == 4  # the twin: time split and M_F were folded
    assert complaints(page) == []


@needs_browser
def test_browser_sorts(page: Browser) -> None:
    sizes = "[...document.querySelectorAll('#rows tbody td:nth-child(2)')].map(c => +c.textContent)"
    page.click("#rows thead th:nth-child(2) button")
    up = page.js(sizes)
    assert up == sorted(up) and up[0] < up[-1]
    page.click("#rows thead th:nth-child(2) button")
    assert page.js(sizes) == up[::-1]
    assert page.js("document.querySelectorAll('[aria-sort=descending]').length") == 1


@needs_browser
@pytest.mark.parametrize("width", [360, 390, 820])
def test_browser_narrow(page: Browser, width: int) -> None:
    page.size(width, 800)
    assert page.js("document.documentElement.scrollWidth") <= width
    shown = page.js("getComputedStyle(document.querySelector('.narrow')).display") == "block"
    assert shown == (width < 480)


@pytest.mark.slow
@needs_browser
def test_browser_themes(page: Browser) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.js(ground)
    page.media(prefers_color_scheme="dark")
    dark = page.js(ground)
    assert light != dark
    page.click("#theme")  # light, whatever the system says
    assert page.js(ground) == light
    page.click("#theme")
    page.media(prefers_color_scheme="light")
    assert page.js(ground) == dark


@needs_browser
def test_browser_page_is_short(page: Browser, tmp_path: Path) -> None:
    """Two datasets, three rows each, nine tables of engines: folded, and not drawn twice."""
    page.size(1400, 900)
    height = "document.documentElement.scrollHeight"
    before = page.js(height)
    report = sample_report(datasets=("scenes", "stamps"))
    engines = tuple(Section(f"engine {i}", Table(("a",), (("b",),) * 12)) for i in range(9))
    write_html(tmp_path / "more.html", replace(report, sections=report.sections + engines))
    page.open(tmp_path / "more.html")
    page.until(f"{VIEWER}.frame !== undefined")
    assert page.js(height) <= before + 40 and before < 2000
    page.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.js(height) > before + 2000  # the twin: what is folded is there


@needs_browser
def test_browser_reduced_motion(page: Browser) -> None:
    duration = "getComputedStyle(document.querySelector('#theme')).transitionDuration"
    assert page.js(duration) != "0s"
    page.media(prefers_reduced_motion="reduce")
    assert page.js(duration) == "0s"


@needs_browser
def test_browser_takes_nasty_names(browser: Browser, tmp_path: Path) -> None:
    report = sample_report()
    rows = tuple(replace(r, name=r.name + NASTY) for r in report.rows)
    frames = tuple(
        replace(f, name=NASTY, masks={n + NASTY: m for n, m in f.masks.items()})
        for f in report.frames
    )
    write_html(tmp_path / "report.html", replace(report, title=NASTY, rows=rows, frames=frames))
    browser.log("browser")
    browser.open(tmp_path / "report.html")
    browser.until(f"{VIEWER}.frame !== undefined")
    assert browser.js("document.querySelector('#frame-name').textContent") == NASTY
    assert browser.js("document.title") == NASTY
    assert complaints(browser) == []
