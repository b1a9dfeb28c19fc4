"""Makes the pictures of the operator's page, from the graph on the simulated rig.

Run, from the package's root, where Chromium is installed (``scripts/setup --tests``)::

    . scripts/env.sh
    python doc/_screenshots.py
"""

import os
import re
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

from helpers.browser import chromium, tab  # noqa: E402
from playwright.sync_api import Page, expect  # noqa: E402

from cosmos_policy_ros.nodes.graph import (  # noqa: E402
    NodeProcesses,
    environment,
    node_processes,
)

IMAGES = ROOT / "doc" / "images"
CHUNK = re.compile(r"arms follow chunk [3-9]")
URL = re.compile(r"operator's page: (\S+)")


def run_a_trial(page: Page) -> None:
    """Arm, start, and take the operator's view in the third chunk; score when it is over."""
    page.locator("#operator").fill("ann")
    while "ARMED" not in page.locator("#nodes").inner_text():
        page.locator("#self_check").click()
        page.wait_for_timeout(1000)
        page.locator("#arm").hover()
        page.mouse.down()
        page.wait_for_timeout(1500)
        page.mouse.up()
        page.wait_for_timeout(500)
    page.locator("#start").click()
    expect(page.locator("#sentence")).to_contain_text(CHUNK)
    page.wait_for_timeout(1200)
    page.screenshot(path=IMAGES / "operator.png")
    expect(page.locator("#rubric")).to_be_visible()
    for key in "123":
        page.keyboard.press(key)
    page.locator("#note").fill("slipped at the end")
    page.keyboard.press("Enter")
    expect(page.locator("#rubric")).to_be_hidden()


def look_through(page: Page) -> None:
    """Open the episode in its middle, and take the researcher's view."""
    page.locator("#to-episodes").click()
    page.locator("#episodes a").first.click()
    page.locator("#episodes canvas").first.wait_for()
    moment = page.url.split("?")[0] + "?t=12.00"
    page.goto(moment)
    page.wait_for_timeout(3000)
    page.screenshot(path=IMAGES / "episodes.png")


def main() -> None:
    """Write ``doc/images/operator.png`` and ``doc/images/episodes.png``."""
    os.environ.setdefault("ROS_DOMAIN_ID", "58")
    os.environ |= environment()
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        nodes = node_processes(
            task="either_cube",
            checkpoint="tiny",
            engine="cosmos",
            planning="best_of_8_quick",
            devices="cpu,cpu",
            panel=True,
            panel_port=0,
            root=f"{folder}/rollouts",
            scene_seed=1003,
        )
        with NodeProcesses(nodes, Path(folder) / "log") as processes:
            while not (found := URL.search(processes.log("operator_panel"))):
                processes.check()
                time.sleep(0.2)
            with tab(browser, found[1]) as page:
                expect(page.locator("#sentence")).to_contain_text("hold Arm")
                run_a_trial(page)
                look_through(page)


if __name__ == "__main__":
    main()
