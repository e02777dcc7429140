# Copyright (c) The SAM-SP bundle contributors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""OHIF in a headless Chromium: open a study, run a model, take pictures."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.label import debian

# Rendering without a graphics card.
SOFTWARE = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
SIZE = {"width": 1400, "height": 850}
TIMEOUT = 180_000  # milliseconds, on a machine that does other things as well


@contextmanager
def opened(program: Path, url: str, study: str) -> Iterator[Any]:
    """A page with a study in OHIF's mode for MONAI Label, connected to the server at ``url``."""
    from playwright.sync_api import sync_playwright

    environment = {**os.environ, "LD_LIBRARY_PATH": debian.library_path()}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(program), env=environment, args=SOFTWARE)
        page = browser.new_page(viewport=SIZE)
        page.set_default_timeout(TIMEOUT)
        page.goto(f"{url}/ohif/monai-label?StudyInstanceUIDs={study}")
        page.get_by_text("Confirm and Hide").click()
        page.get_by_text("I:").first.wait_for()
        address = page.locator('input[value*="127.0.0.1"]').first
        address.fill(f"{url}/")
        page.locator('input[value*="127.0.0.1"] >> xpath=following::button[1]').first.click()
        page.get_by_text("Auto-Segmentation").first.wait_for()
        page.wait_for_timeout(5000)  # the pictures are drawn
        yield page
        browser.close()


def run_model(page: Any) -> None:
    """Press the button, and wait until the server has answered and the mask is drawn."""
    with page.expect_response(lambda answer: "/infer/" in answer.url):
        page.get_by_role("button", name="Run").first.click()
    page.wait_for_timeout(5000)


def click_and_run(page: Any, label: str, place: tuple[int, int]) -> dict[str, Any]:
    """Click a place of the page for a label in the panel for clicks, press its button; what was sent to the server."""
    panel = page.locator(".tab", has_text="Point Prompts")
    panel.get_by_text("Point Prompts").click()
    panel.locator("tr.clickable-row", has_text=label).click()
    page.mouse.click(*place)
    page.wait_for_timeout(1000)
    with page.expect_response(lambda answer: "/infer/" in answer.url) as answered:
        panel.get_by_role("button", name="Run").click()
    page.wait_for_timeout(5000)
    sent = answered.value.request
    return {"url": sent.url, **json.loads(re.findall(r"\{.*\}", sent.post_data)[0])}
