"""The page of `save-deploy web` in a browser: exact preprocessing, the masks of Python, offline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from save_deploy.bundle import Manifest
from save_deploy.runtime.golden import read_golden
from save_deploy.runtime.pipeline import load
from save_deploy.runtime.video.source import VideoSource
from save_deploy.runtime.web.options import SiteOptions
from save_deploy.runtime.web.site import write_site
from tests.runtime.html_samples import Browser, open_browser
from tests.runtime.web_page import (
    Served,
    logits_at,
    needs_browser,
    open_page,
    runtime_archive,
    served,
    write_lossless,
)

pytestmark = [needs_browser, pytest.mark.slow]
CAMERA = (
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
)


@pytest.fixture(scope="module")
def site(bundle_fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("web") / "site"
    write_site(bundle_fp32, SiteOptions(out=out, runtime=runtime_archive()))
    return out


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[Served]:
    with served(site) as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile"), *CAMERA) as opened:
        opened.post("timeouts", script=60_000)
        yield opened


@pytest.fixture(scope="module")
def ready(browser: Browser, server: Served) -> Browser:
    browser.size(1280, 900)
    open_page(browser, server.url)
    return browser


@pytest.fixture
def page(ready: Browser, server: Served) -> Browser:
    """With its model ready, nothing to watch and an empty log."""
    if ready.js("location.href") != server.url:
        open_page(ready, server.url)
    ready.js("document.querySelector('#close').click()")
    ready.until("document.querySelector('#start').hidden", False)
    ready.size(1280, 900)
    ready.log("browser")
    ready.requests()
    return ready


def complaints(browser: Browser) -> list[str]:
    """Errors on the console; a machine without a GPU is a warning there."""
    return [line["message"] for line in browser.log("browser") if line["level"] == "SEVERE"]


def test_conformance_pack_passes(page: Browser, server: Served) -> None:
    """Pixels to the bit, sounds within 1e-6, and the masks of the exported model."""
    rows = {row["name"]: row for row in page.js("save.ask('check')")}
    assert len(rows) == 7 and all(row["ok"] for row in rows.values())
    assert rows["files to pixels: pictures that differ"]["value"] == 0
    assert rows["files to sound: samples"]["value"] <= 1e-6
    assert rows["files to masks: IoU of decided pixels"]["value"] == 1
    page.click("#check")
    page.until("document.querySelectorAll('#checked td.ok').length", 7, seconds=60)
    assert page.js("crossOriginIsolated")  # so that several threads may be used
    assert complaints(page) == []
    assert all(url.startswith((server.url, "about:")) for url in page.requests())


def test_masks_of_a_film_are_those_of_python(
    page: Browser, bundle_fp32: Path, tmp_path: Path
) -> None:
    manifest = Manifest.read(bundle_fp32)
    golden = read_golden(bundle_fp32, manifest)
    film = write_lossless(tmp_path / "film.mp4", golden.image, golden.answers.waveform)
    page.choose("#file", film)
    page.until("document.querySelector('#rate').textContent != '\\u2013'", seconds=30)
    shown = logits_of_python(bundle_fp32, film, [0.5, 1.5])
    for k, wanted in enumerate(shown):
        found = logits_at(page, k + 0.5, manifest.config.res)
        differ = (found > 0) != (wanted > 0)
        # pixels are the same; sounds are decoded alike but for 1e-5
        assert np.abs(found - wanted).max() < 0.01
        assert not (differ & (np.abs(wanted) > 0.01)).any()
    assert np.abs(shown[0] - shown[1]).max() > 0.1  # so that a wrong frame or second would show
    assert complaints(page) == []


def logits_of_python(bundle: Path, film: Path, times_s: list[float]) -> list[np.ndarray]:
    """mask_logits (S,S) of the frame shown at each time, as save-run computes them."""
    source, found = VideoSource(film), list[np.ndarray]()
    seconds, frames = list(source.sound_seconds()), list(source.frames())
    with load(bundle, threads=1) as pipeline:
        for time_s in times_s:
            shown = max((f for f in frames if f.time_s <= time_s), key=lambda f: f.time_s)
            heard = pipeline.embed(seconds[int(time_s)])
            found.append(pipeline.logits(shown.picture, heard))
    return found


def test_film_is_played_and_stopped(page: Browser, bundle_fp32: Path, tmp_path: Path) -> None:
    golden = read_golden(bundle_fp32, Manifest.read(bundle_fp32))
    film = write_lossless(tmp_path / "film.mp4", golden.image, golden.answers.waveform)
    page.choose("#file", film)
    page.until("document.querySelector('#clock').textContent.endsWith('/ 0:02')", seconds=30)
    page.until("document.querySelector('#film').ended", seconds=30)
    page.until("document.querySelector('#toggle').getAttribute('aria-label')", "Play")
    page.click("#shown")
    assert page.js("getComputedStyle(document.querySelector('#mask')).visibility") == "hidden"
    page.click("#close")
    page.until("document.querySelector('#start').hidden", False)
    assert page.js("document.querySelector('#film').hidden")
    assert complaints(page) == []


def test_camera_and_microphone(page: Browser) -> None:
    """Chromium's own: a clock in pictures, and beeps."""
    page.click("#camera")
    page.until("Number(document.querySelector('#rate').textContent) > 0", seconds=30)
    page.until("document.querySelector('#level').textContent.endsWith('dB')", seconds=30)
    page.click("#close")
    page.until("document.querySelector('#start').hidden", False)
    assert complaints(page) == []


def test_what_is_no_film_is_said(page: Browser, tmp_path: Path) -> None:
    (tmp_path / "letter.mp4").write_text("Dear reader")
    page.choose("#file", tmp_path / "letter.mp4")
    page.until(
        "document.querySelector('#error').textContent", "This browser cannot play letter.mp4"
    )
    assert not page.js("document.querySelector('#start').hidden")


def test_other_weights_are_refused(browser: Browser, bundle_fp32: Path, tmp_path: Path) -> None:
    """The twin of the tests above: a page whose files are not those of its list says so."""
    write_site(bundle_fp32, SiteOptions(out=tmp_path / "site", runtime=runtime_archive()))
    audio = tmp_path / "site" / "bundle" / "audio.onnx"
    content = bytearray(audio.read_bytes())
    content[-1] ^= 1
    audio.write_bytes(content)
    with served(tmp_path / "site") as running:
        browser.open(running.url)
        text = "document.querySelector('#error').textContent"
        browser.until(f"{text}.startsWith('Audio.onnx is not the file')", seconds=60)


@pytest.mark.thorough
def test_difference_is_found(browser: Browser, bundle_fp32: Path, tmp_path: Path) -> None:
    """The twin of the conformance test: another picture, another sound, other budgets."""
    write_site(bundle_fp32, SiteOptions(out=tmp_path / "site", runtime=runtime_archive()))
    about = json.loads((tmp_path / "site" / "site.json").read_text())
    cases = about["conformance"]["cases"]
    cases[0]["image_sha256"] = "0" * 64
    cases[3]["sound"] = cases[4]["sound"]
    (tmp_path / "site" / "site.json").write_text(json.dumps(about))
    with served(tmp_path / "site") as running:
        open_page(browser, running.url)
        rows = {row["name"]: row["ok"] for row in browser.js("save.ask('check')")}
    assert not rows["files to pixels: pictures that differ"]
    assert not rows["files to sound: samples"]
    assert rows["golden samples: logits"]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_it_fits_every_screen(page: Browser, theme: str, width: int) -> None:
    page.size(width, 900)
    page.media(prefers_color_scheme=theme)
    assert page.js("document.documentElement.scrollWidth") <= width
    background = page.js("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(245, 244, 247)", "dark": "rgb(19, 18, 23)"}[theme]


@pytest.mark.thorough
def test_it_works_without_the_server(browser: Browser, site: Path) -> None:
    with served(site) as running:
        open_page(browser, running.url)
        browser.js("save.ask('check')")
    browser.log("browser")
    open_page(browser, running.url)  # nobody answers there now
    rows = browser.js("save.ask('check')")
    assert rows and all(row["ok"] for row in rows)
    left = [line for line in complaints(browser) if "ERR_CONNECTION_REFUSED" not in line]
    assert left == []
