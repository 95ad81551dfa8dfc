# SPDX-License-Identifier: Apache-2.0
"""The app in a real browser: what a visitor sees, changes, saves and is told, on a desk and on a phone.

The app runs as its users start it, `scripts/run_app.py` on a sample checkpoint, in a process of its own. With
ICE_WRITE_SCREENSHOTS=1 the pictures of docs/app.md are taken anew.
"""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image


pytest.importorskip("gradio", reason="the app needs the extra `app`")
pytest.importorskip("selenium", reason="the browser is driven by selenium, of the extra `dev`")

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys


CHROMIUM, CHROMEDRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (os.path.exists(CHROMIUM) and os.path.exists(CHROMEDRIVER)),
        reason=f"needs {CHROMIUM} and {CHROMEDRIVER} (Debian: apt install chromium chromium-driver)",
    ),
]

ROOT = Path(__file__).resolve().parents[1]
SCENE = ROOT / "docs/images/scene.png"
MAX_SECONDS_TO_FIRST_EXPLANATION = 60
PHONE = (390, 844)
MAX_SCREENSHOT_BYTES = 250_000


class App:
    """A running app, and the moment it was started."""

    def __init__(self, checkpoint: str, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{free.getsockname()[1]}"
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        environment.pop("OMP_NUM_THREADS", None)  # as a user starts it
        port = self.address.rpartition(":")[2]
        words = [sys.executable, "scripts/run_app.py", "--model", checkpoint, "--port", port]
        self.started, self.log = time.monotonic(), log
        with open(log, "w") as output:
            self.process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=output, stderr=output)

    def wait(self) -> App:
        while time.monotonic() - self.started < 150:
            assert self.process.poll() is None, self.log.read_text()
            try:
                urlopen(self.address, timeout=5).close()
                return self
            except (URLError, OSError):
                time.sleep(0.2)
        raise AssertionError(self.log.read_text())

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)


def open_browser(size: tuple[int, int], downloads: Path, phone: bool = False) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(word)
    options.add_argument(f"--window-size={size[0]},{size[1]}")
    if phone:
        metrics = {"width": size[0], "height": size[1], "pixelRatio": 1.0, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
    return driver


class Page:
    """The page in a browser, as a visitor works with it."""

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver, self.address = driver, address

    def open(self, query: str = "") -> None:
        self.driver.get(f"{self.address}/{query}")
        self.until(self.shows_explanation)

    def until(self, condition, seconds: float = 60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                value = condition()
            except Exception:  # the page is changing under the question
                value = None
            if value:
                return value
            time.sleep(0.1)
        raise AssertionError(f"{condition} did not come true in {seconds} s; the page says: {self.text('#status')!r}")

    def find(self, selector: str):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def find_all(self, selector: str) -> list:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def shows_explanation(self) -> bool:
        return self.run(
            "const i = document.querySelector('#heat img'); return !!i && i.complete && i.naturalWidth > 0"
        )

    def click(self, selector: str) -> None:
        element = self.find(selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def upload(self, path: Path) -> None:
        for button in self.find_all("#picture button[aria-label='Remove Image']"):
            self.run("arguments[0].scrollIntoView({block: 'center'})", button)
            button.click()
        self.until(lambda: "Drop a picture" in self.text("#status"))
        self.until(lambda: self.find_all("#picture input[type=file]"))[0].send_keys(str(path))

    def screenshot(self, path: Path, height: int) -> None:
        """Write the top of the page in 256 colours, as large as fits a small file."""
        width = self.run("return innerWidth")
        for scale in (1.0, 0.9, 0.8, 0.7, 0.6):
            clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": scale}
            shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
            image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
            image.quantize(256, method=Image.Quantize.FASTOCTREE).save(path, optimize=True)
            if path.stat().st_size < MAX_SCREENSHOT_BYTES:
                return
        raise AssertionError(f"{path} has {path.stat().st_size} bytes")


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    running = App("checkpoints/ice-deit-scenes", tmp_path_factory.mktemp("app") / "log.txt")
    yield running
    running.close()


@pytest.fixture(scope="module")
def first_visit(app, downloads):
    """A browser that opened the page as soon as it was there, and the seconds from the app's start to the picture."""
    driver = open_browser((1280, 900), downloads)
    page = Page(driver, app.wait().address)
    page.open()
    seconds = time.monotonic() - app.started
    yield page, seconds
    driver.quit()


@pytest.fixture
def page(first_visit):
    page, _ = first_visit
    page.open()
    return page


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory):
    wanted = os.environ.get("ICE_WRITE_SCREENSHOTS", "") not in ("", "0")
    return ROOT / "docs/images" if wanted else tmp_path_factory.mktemp("screenshots")


def test_first_explanation_is_on_screen_within_a_minute_of_the_start(first_visit):
    page, seconds = first_visit
    assert seconds < MAX_SECONDS_TO_FIRST_EXPLANATION
    assert "red dotted" in page.text(".ice-answer .label")
    assert page.text("#heat-caption").startswith("Heat map: ")


def test_uploaded_picture_is_explained(page):
    page.upload(SCENE)
    page.until(lambda: page.text(".ice-answer .label") == "green striped")
    page.until(lambda: "256 x 256 pixels" in page.text("#status"))
    page.until(page.shows_explanation)
    for name in ("heat", "classes", "mask", "cutout"):
        picture = page.find(f"#{name} img")
        assert picture.get_attribute("alt") in page.text(f"#{name}-caption")
        assert page.run("return arguments[0].naturalWidth", picture) == 640
    assert "green striped" in page.text("#classes-caption .ice-legend")


def test_example_is_explained_by_keyboard_alone(page):
    page.run("document.querySelectorAll('#examples button.thumbnail-item')[1].focus()")
    ActionChains(page.driver).send_keys(Keys.ENTER).perform()
    page.until(lambda: page.text(".ice-answer .label") == "green striped")


OUTLINE = """
const element = document.activeElement, style = getComputedStyle(element);
return [style.outlineStyle, parseFloat(style.outlineWidth), element.getBoundingClientRect().width > 0];
"""


def test_focus_of_the_keyboard_can_be_seen(page):
    page.run("document.activeElement.blur()")
    seen = 0
    for _ in range(8):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        style = (
            "const s = getComputedStyle(document.activeElement); return [s.outlineStyle, parseFloat(s.outlineWidth)]"
        )
        outline, width = page.run(style)
        if page.run("return document.activeElement.getBoundingClientRect().width") > 0:
            assert (outline, width) == ("solid", 3)
            seen += 1
    assert seen >= 5


def test_target_changes_the_heat_map(page):
    before = page.find("#heat img").get_attribute("src")
    page.click("#target input")
    page.until(lambda: page.find_all("[role=option][aria-label='yellow dotted']"))[0].click()
    page.until(lambda: "“yellow dotted”" in page.text("#heat-caption"))
    page.until(lambda: page.find("#heat img").get_attribute("src") != before)
    assert page.text(".ice-answer .label") == "red dotted", "the answer does not depend on what is looked for"


def test_other_explainers_are_shown_next_to_ice(page):
    page.click("#compare")
    page.until(lambda: len(page.find_all("#comparison figure")) == 5)
    captions = [figure.text for figure in page.find_all("#comparison figcaption")]
    assert captions[0].startswith("ICE")
    assert all(" ms" in caption for caption in captions)
    assert all(picture.get_attribute("alt") for picture in page.find_all("#comparison img"))


def test_pruning_shows_patches_work_and_time(page):
    page.click("#prune")
    page.until(lambda: len(page.find_all("#kept figure")) == 3)
    numbers = page.until(lambda: page.text("#pruning-numbers"))
    for words in ("Million MACs", "84.8", "Milliseconds", "Layer 5"):
        assert words in numbers
    assert not page.find_all("#margin"), "only what the strategy listens to is shown"
    page.click("#strategy input[type=radio]")  # the first: background, for which this checkpoint has no heads
    page.until(lambda: page.find_all("#margin") and not page.find_all("#keep-rate"))
    page.click("#prune")
    page.until(lambda: "pruning heads" in page.text("#pruning-status"))
    assert "ice-deit-scenes-pruned" in page.text("#pruning-status")
    assert page.find("#pruning-status [role=alert]")


def saved_by(page: Page, selector: str, folder: Path) -> Path:
    """Click, and return the file that arrives."""
    for path in folder.iterdir():
        path.unlink()
    page.click(selector)
    page.until(lambda: [path for path in folder.iterdir() if path.suffix in (".png", ".json")], 20)
    return next(folder.iterdir())


def test_pictures_and_result_can_be_saved(page, downloads):
    page.click("#compare")
    page.until(lambda: page.find_all("#comparison figure"))
    links = {"#heat [aria-label='Download']": 640, "#cutout [aria-label='Download']": 640, "#comparison a": 480}
    for selector, side in links.items():
        path = saved_by(page, selector, downloads)
        assert path.suffix == ".png"
        with Image.open(path) as image:
            assert image.size == (side, side)
    record = json.loads(saved_by(page, "#download a", downloads).read_text())
    assert record["label"] == "red dotted"
    assert record["model"] == "ice-deit-scenes"  # without the folders of this machine
    assert set(record["box"]) == {"xmin", "ymin", "xmax", "ymax"}


def test_files_that_cannot_be_explained_are_answered_and_the_app_goes_on(page, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "torn.png").write_bytes(SCENE.read_bytes()[:4000])
    Image.new("1", (9000, 9000)).save(tmp_path / "vast.png")
    for name, words in (("text.png", "not a picture"), ("torn.png", "damaged"), ("vast.png", "9000 x 9000 pixels")):
        page.upload(tmp_path / name)
        page.until(lambda words=words: words in page.text("#status"))
        assert page.find("#status [role=alert]")
        assert not page.find_all("#heat img"), "no explanation of another picture beside it"
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "large.png").write_bytes(os.urandom(21 * 2**20))
    for name, words in (("notes.txt", "Invalid file type"), ("large.png", "exceed the maximum allowed size of 20")):
        page.upload(tmp_path / name)
        page.until(lambda words=words: any(words in toast.text for toast in page.find_all(".toast-body")))
    grey = np.linspace(0, 65535, 64 * 96).reshape(64, 96).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    page.upload(tmp_path / "grey.png")
    page.until(lambda: "96 x 64 pixels" in page.text("#status"))


def test_page_asks_no_other_host_for_anything(page):
    page.driver.get_log("performance")
    page.open()
    page.click("#compare")
    page.until(lambda: page.find_all("#comparison figure"))
    messages = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    asked = {parameters["request"]["url"] for parameters in sent}
    assert len(asked) > 10
    assert not {url for url in asked if not url.startswith((page.address, "data:", "blob:"))}


def test_page_works_without_errors_of_its_scripts(page):
    page.open()
    severe = [entry["message"] for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [message for message in severe if "413" not in message]


def test_everything_that_can_be_touched_has_a_name(page):
    page.click("#compare")
    page.until(lambda: page.find_all("#comparison figure"))
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"button", "checkbox", "radio", "slider", "spinbutton", "combobox", "listbox", "link", "textbox"}
    touched = [node for node in nodes if not node["ignored"] and node.get("role", {}).get("value") in roles]
    assert len(touched) > 30
    nameless = [node for node in touched if not node.get("name", {}).get("value")]
    assert not [node["role"]["value"] for node in nameless]
    named = {node["name"]["value"] for node in touched}
    assert {"Compare", "Target of the heat map", "Example: red dotted", "Attention rollout"} <= named
    assert all(picture.get_attribute("alt") for picture in page.find_all("img"))


CONTRAST = r"""
const rgb = (text) => (text.match(/[\d.]+/g) || []).map(Number);
const channel = (v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
const light = (c) => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
const behind = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c;
  }
  return [255, 255, 255];
};
const found = [];
const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement, words = walker.currentNode.textContent.trim();
  const box = element.getBoundingClientRect(), style = getComputedStyle(element);
  const hidden = !box.width || !box.height || style.visibility === "hidden";
  if (!words || hidden || element.closest("script, style, svg")) continue;
  const [a, b] = [light(rgb(style.color)), light(behind(element))].sort((x, y) => y - x);
  found.push([(a + 0.05) / (b + 0.05), words.slice(0, 60), style.color, behind(element).join()]);
}
return found;
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(page, theme):
    page.open(f"?__theme={theme}")
    page.click("#prune")
    page.until(lambda: page.text("#pruning-numbers"))
    found = page.run(CONTRAST)
    assert len(found) > 60
    assert not [entry for entry in found if entry[0] < 4.5]


TOUCHED = ("#compare", "#prune", "#target .wrap-inner", "#examples button.thumbnail-item", "#download a")


def test_page_fits_a_phone(app, first_visit, downloads, screenshots):
    driver = open_browser(PHONE, downloads, phone=True)
    try:
        page = Page(driver, app.address)
        page.open("?__theme=light")
        page.click("#compare")
        page.until(lambda: page.find_all("#comparison figure"))
        page.click("#prune")
        page.until(lambda: page.text("#pruning-numbers"))
        # a page that is too wide makes the window wider too, so both are compared with the phone
        assert page.run("return [document.documentElement.scrollWidth, innerWidth]") == [PHONE[0], PHONE[0]]
        for selector in (
            "#compare",
            "#prune",
            "#target .wrap-inner",
            "#examples button.thumbnail-item",
            "#download a",
        ):
            box = page.find(selector).rect
            assert box["height"] >= 32, selector
            assert box["x"] >= 0, selector
            assert box["x"] + box["width"] <= PHONE[0], selector
        page.run("scrollTo(0, 0)")
        time.sleep(0.5)
        page.screenshot(screenshots / "app_phone.png", 1500)
    finally:
        driver.quit()


def test_page_on_a_desk_for_the_document(page, screenshots):
    page.open("?__theme=light")
    page.until(lambda: len(page.find_all("#examples img")) == 8)
    time.sleep(1)  # thumbnails are drawn
    page.screenshot(screenshots / "app_desktop.png", 1640)


def test_checkpoint_with_heads_prunes_by_background(tmp_path):
    app = App("checkpoints/ice-deit-scenes-pruned", tmp_path / "log.txt")
    try:
        driver = open_browser((1280, 900), tmp_path)
        try:
            page = Page(driver, app.wait().address)
            page.open()
            page.click("#prune")
            page.until(lambda: page.find_all("#kept figure"))
            assert "patches are kept" in page.text("#kept")
        finally:
            driver.quit()
    finally:
        app.close()
