# SPDX-License-Identifier: Apache-2.0
"""The page of `explain --html` in a real browser: its order, its pictures, and that it makes no requests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from transformers_ice.cli import explain
from transformers_ice.data.scenes import SCENE_CLASSES, draw_scene


pytest.importorskip("selenium", reason="the browser is driven by selenium, of the extra `dev`")

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select


CHROMIUM, CHROMEDRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
MODEL = Path(__file__).resolve().parents[1] / "checkpoints" / "ice-deit-scenes"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (os.path.exists(CHROMIUM) and os.path.exists(CHROMEDRIVER)), reason=f"needs {CHROMIUM} and {CHROMEDRIVER}"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six scenes in the folders of their classes, one in a wrong one, and a plain picture: nothing to be found."""
    root = tmp_path_factory.mktemp("photos")
    scenes = [draw_scene(index, image_size=96) for index in range(6)]
    for index, scene in enumerate(scenes):
        name = SCENE_CLASSES[scene.label if index else scenes[1].label]
        (root / name).mkdir(exist_ok=True)
        Image.fromarray(scene.image).save(root / name / f"{index} <i>.jpg", comment=b"taken at home")
    Image.new("RGB", (80, 60), "gray").save(root / "plain.png")
    output = tmp_path_factory.mktemp("page")
    assert explain.main([str(root), "--model", str(MODEL), "--output_dir", str(output), "--html"]) == 0
    return output


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    yield driver
    driver.quit()


def cards(browser, name):
    return [float(card.get_attribute(f"data-{name}")) for card in browser.find_elements(By.TAG_NAME, "figure")]


def test_page_is_sorted_and_makes_no_requests(browser, folder):
    browser.get((folder / "index.html").as_uri())
    right, scores = cards(browser, "right"), cards(browser, "score")
    assert sorted(zip(right, scores, strict=True)) == list(zip(right, scores, strict=True))
    assert right.count(0) == 1  # the scene in the folder of another class, first
    order = Select(browser.find_element(By.ID, "order"))
    for value, name, sign in (
        ("-score", "score", -1),
        ("score", "score", 1),
        ("foreground", "foreground", 1),
        ("-foreground", "foreground", -1),
        ("place", "place", 1),
    ):
        order.select_by_value(value)
        values = [sign * number for number in cards(browser, name)]
        assert len(values) == 7
        assert values == sorted(values)
    order.select_by_value("right,score")
    assert (cards(browser, "right"), cards(browser, "score")) == (right, scores)

    widths = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(widths) == 14
    assert min(widths) > 0
    text = browser.find_element(By.TAG_NAME, "body").text
    assert "7 images, 1 of 6 with a known class are wrong" in text
    assert "nothing found" in text
    assert "<i>.jpg" in text  # a name of a file is text, not mark-up
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert asked
    assert {address.partition(":")[0] for address in asked} <= {"file", "data"}
