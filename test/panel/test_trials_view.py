"""The trials of a protocol in a real browser: the picture over the camera, scores, the table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.browser import DIM, UNNAMED, chromium, tab
from playwright.sync_api import Browser, Page, expect

from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.panel.access import Access
from cosmos_policy_ros.panel.server import Images, PanelServer, Picture
from cosmos_policy_ros.panel.status import Graph, allowed
from cosmos_policy_ros.rig.jpeg import to_jpeg

HTML = '<img src="x" onerror="window.broken = 1"><b>bold</b>'
NAMES = (*allowed(Graph({})), "stop", "tasks", "discard", "picture")
TRIAL: Mapping[str, Any] = {
    "task": "ziploc",
    "condition": "out of distribution",
    "state": 7,
    "prompt": "put candy in bag",
    "setup": "A bag and a candy.",
    "place": HTML,
    "picture": "ziploc/7/1",
    "contender": "",
}
TRIALS: Mapping[str, Any] = {
    "evaluation": "aloha",
    "sealed": True,
    "number": 3,
    "total": 12,
    "left": 10,
    "waiting": 0,
    "repeated": 2,
    "command": "cosmos trials aloha --root rollouts --output tables",
    "trial": TRIAL,
    "prepared": True,
    "laying_out": True,
}
UNSCORED = {
    "episode": "20261129-120000_ziploc_0001",
    "trial": True,
    "rubric": {
        "stages": [{"name": "grasped", "points": 40}, {"name": "in bag", "points": 60}],
        "deductions": [],
    },
}
TABLE = [
    "# aloha: 6 initial states, 2 contenders",
    "",
    "The operator did not know",
    "which contender ran.",
    "",
    "|  | ziploc | average |",
    "| --- | --- | --- |",
    "| *full* |  |  |",
    f"| {HTML} | **61.0** (40.1 to 80.2) | **61.0** |",
    "",
    "- the one less the other: 4 points",
]
# What the camera shows, and the picture of the state.
RED, BLUE = (np.full((48, 64, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))


class Panel:
    """A server that keeps what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.problem = ""
        note = {"age": 0.03, "freshness": "fresh", "problem": ""}
        pictures = {"primary": Picture(1, to_jpeg(RED), note)}
        handlers = {name: self._handler(name) for name in (*NAMES, "unseal")}
        self.server = PanelServer(Access(), 0, handlers, lambda: pictures, print)
        self.state: dict[str, Any] = {
            "tone": "ready",
            "sentence": "Trial 3 of 12",
            "nodes": {"policy_node": "alive", "recorder_node": "alive"},
            "refusals": dict.fromkeys(allowed(Graph({})), ""),
            "policy": {"armed": False, "run_id": ""},
            "recorder": {"episode_id": "", "seconds": 0.0, "go": True, "reasons": []},
            **dict.fromkeys(("decision", "refusal", "unscored", "minutes_left")),
            **{"recording": False, "records": True, "simulated": True, "values": []},
            **{"free_gb": 80.0, "task": "ziploc", "trials": TRIALS},
        }
        self.show()

    def _handler(self, name: str) -> Any:
        async def handle(arguments: dict[str, Any]) -> Mapping[str, Any] | Images:
            if name == "tasks":
                return {"tasks": {}}
            if name == "picture":
                if self.problem:
                    raise ConfigError(self.problem)
                return Images({}, [to_jpeg(BLUE)])
            self.asked.append((name, arguments))
            return {"message": f"{name} done", "table": TABLE}

        return handle

    def show(self, **changes: Any) -> None:
        """Publish a state."""
        self.state |= changes
        self.server.publish(self.state)

    def wait(self, page: Page, *asked: tuple[str, dict[str, Any]]) -> None:
        """Wait until exactly this has been asked for."""
        for _ in range(600):
            if len(self.asked) >= len(asked):
                break
            page.wait_for_timeout(100)
        assert self.asked == list(asked)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def panel() -> Iterator[Panel]:
    panel = Panel()
    yield panel
    panel.server.close()


@pytest.fixture
def page(browser: Browser, panel: Panel) -> Iterator[Page]:
    with tab(browser, panel.server.url) as page:
        expect(page.locator("#trials-title")).to_have_text("Trial 3 of 12")
        yield page


def seen(page: Page) -> tuple[float, float]:
    """Return mean red and blue, 0 to 255, in the middle of where the primary camera is shown."""
    shot = page.locator('figure[data-source="primary"] .stack').screenshot()
    image = cv2.imdecode(np.frombuffer(shot, np.uint8), cv2.IMREAD_COLOR)
    height, width, _ = image.shape
    middle = image[height // 2 - 4 : height // 2 + 4, width // 2 - 4 : width // 2 + 4]
    blue, _, red = middle.reshape(-1, 3).mean(axis=0)
    return float(red), float(blue)


def test_the_picture_is_blended_over_the_camera(page: Page, panel: Panel) -> None:
    camera = page.locator('figure[data-source="primary"] canvas').first
    expect(camera).to_have_attribute("data-shown", re.compile(r"\d+"))
    expect(page.locator("#reference")).to_be_visible()
    red, blue = seen(page)
    assert 100 < red < 155 and 100 < blue < 155
    for level, wanted in (("0", (254, 0)), ("1", (0, 254)), ("0.25", (191, 64))):
        page.locator("#blend").fill(level)
        assert seen(page) == pytest.approx(wanted, abs=12), level
    page.locator("#blend").blur()
    page.keyboard.down("f")
    assert seen(page) == pytest.approx((0, 254), abs=12), "the other one, while it is held"
    page.keyboard.up("f")
    assert seen(page) == pytest.approx((191, 64), abs=12)
    assert panel.asked == [], "nothing of it leaves the page"
    panel.show(trials={**TRIALS, "laying_out": False})
    expect(page.locator("#reference")).to_have_count(0)
    expect(page.locator("#blend")).to_be_hidden()
    expect(camera).to_be_visible()
    panel.problem = "ziploc_008.png: is no picture"
    other = {**TRIAL, "picture": "ziploc/8/1"}
    panel.show(trials={**TRIALS, "trial": other})
    expect(page.locator("#trials-note")).to_contain_text("is no picture")


def test_what_is_laid_out_is_told_as_text(page: Page, panel: Panel) -> None:
    for words in ("ziploc, out of distribution", "put candy in bag", "A bag and a candy.", HTML):
        expect(page.locator("#trials-facts")).to_contain_text(words)
    expect(page.locator("#trials-note")).to_contain_text("Not counted, and made again: 2.")
    for hidden in ("#task", "#prompt", "#reset", "#candidates", "#values"):
        expect(page.locator(hidden)).to_be_hidden()
    expect(page.locator('figure[data-source="imagined/primary"]')).to_be_hidden()
    expect(page.locator("#operator")).to_be_visible()
    assert page.locator("body img, body b").count() == 0
    assert page.evaluate(UNNAMED) == []
    assert page.evaluate(DIM) == []
    page.keyboard.press("l")
    panel.wait(page, ("prepare", {}))


def test_a_trial_is_scored_or_made_again(page: Page, panel: Panel) -> None:
    panel.show(unscored=UNSCORED)
    expect(page.locator("#rubric")).to_be_visible()
    expect(page.locator("#skip")).to_be_hidden()
    again = page.locator("#discard")
    expect(again).to_have_text("Make this trial again …")
    while not panel.asked:  # a busy machine may take longer than the confirmation counts
        again.evaluate("b => { b.click(); b.click(); }")
        page.wait_for_timeout(200)
    asked = {"episode": UNSCORED["episode"], "reason": "the trial is to be made again"}
    assert panel.asked[0] == ("discard", asked)
    panel.show(unscored={**UNSCORED, "episode": "plain", "trial": False})
    expect(page.locator("#skip")).to_be_visible()
    expect(again).to_have_text("Discard …")


def test_the_table_comes_at_the_end_and_before_it_by_a_second_press(
    page: Page, panel: Panel
) -> None:
    button = page.locator("#unseal")
    assert button.evaluate("b => { b.click(); return b.textContent; }").startswith("Really unseal")
    expect(button).to_have_text("Unseal now …")  # some seconds later
    assert panel.asked == []
    panel.show(trials={**TRIALS, "trial": None, "left": 0, "number": 13, "laying_out": False})
    expect(page.locator("#trials-title")).to_have_text("All 12 trials are made")
    expect(page.locator("#trials-note")).to_contain_text("cosmos trials aloha")
    button.click()
    panel.wait(page, ("unseal", {"before_the_end": False}))
    table = page.locator("#trials-table")
    expect(table.locator("h2")).to_have_text("aloha: 6 initial states, 2 contenders")
    expect(table.locator("p")).to_have_text("The operator did not know which contender ran.")
    expect(table.locator("th")).to_have_text(["", "ziploc", "average"])
    expect(table.locator("tbody tr").nth(1)).to_contain_text(f"{HTML}61.0 (40.1 to 80.2)")
    expect(table.locator("li")).to_have_text("the one less the other: 4 points")
    assert page.locator("body img, body b").count() == 0
    page.keyboard.press("Space")
    panel.wait(page, ("unseal", {"before_the_end": False}), ("stop", {}))
    table.get_by_role("button").click()
    expect(table).to_be_hidden()


def test_all_of_it_fits_on_one_screen(browser: Browser, panel: Panel) -> None:
    place = "The red cube at the left edge, the blue one 10 cm behind it, turned by 45 degrees."
    panel.show(trials={**TRIALS, "trial": {**TRIAL, "place": place}})
    with tab(browser, panel.server.url) as page:
        expect(page.locator("#reference")).to_be_visible()
        for selector in ("#stop", "#sentence", "#images", "#trials", "#arm", "#start", "#blend"):
            box = page.locator(selector).bounding_box()
            assert box is not None and box["height"] > 10, selector
            assert box["y"] >= 0 and box["y"] + box["height"] <= 720, selector
        panel.show(unscored=UNSCORED, trials={**TRIALS, "laying_out": False})
        expect(page.locator("#rubric")).to_be_visible()
        box = page.locator("#discard").bounding_box()
        assert box is not None and box["y"] + box["height"] <= 720
        expect(page.locator("#unseal")).to_be_hidden()
    with tab(browser, panel.server.url, {"width": 820, "height": 1180}) as page:
        expect(page.locator("#trials")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 820
