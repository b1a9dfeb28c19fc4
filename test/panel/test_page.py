"""The operator's view in a real browser, before a server without ROS: what is shown, and keys."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from helpers.browser import DIM, UNNAMED, chromium, tab
from playwright.sync_api import Browser, Page, expect

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.panel.access import Access
from cosmos_policy_ros.panel.server import PanelServer, Picture
from cosmos_policy_ros.panel.status import Graph, allowed
from cosmos_policy_ros.rig.jpeg import to_jpeg

HTML = '<img src="x" onerror="window.broken = 1"><b>bold</b>'
UNSCORED = {
    "episode": "20261129-120000_ziploc_0001",
    "rubric": {
        "stages": [{"name": "grasped", "points": 40}, {"name": HTML, "points": 60}],
        "deductions": [{"name": "dropped", "points": 10}],
    },
}
STATE: dict[str, Any] = {
    "tone": "ready",
    "sentence": "Armed and ready: press Start.",
    "nodes": {"policy_node": "alive", "recorder_node": "alive"},
    "refusals": dict.fromkeys(allowed(Graph({})), ""),
    "policy": {"armed": True, "run_id": "", "phase": "ready"},
    "recorder": {"episode_id": "", "seconds": 0.0, "go": True, "reasons": []},
    "recording": False,
    "records": True,
    "simulated": False,
    "decision": None,
    "values": [],
    "refusal": None,
    "unscored": None,
    "minutes_left": 61.4,
    "free_gb": 80.0,
    "task": "ziploc",
    "leaders": False,
    "demonstrations": {},
}


class Panel:
    """A server that keeps what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.pictures: dict[str, Picture] = {}
        self.refuse = self.silent = ""
        self.hung = 0
        names = (*STATE["refusals"], "stop", "tasks", "discard", "episodes")
        self.server = PanelServer(
            Access(), 0, {name: self._handler(name) for name in names}, self._look, print
        )
        self.state = copy.deepcopy(STATE)
        self.show()

    def _look(self) -> Mapping[str, Picture]:
        return dict(self.pictures)

    def _handler(self, name: str) -> Any:
        async def handle(arguments: dict[str, Any]) -> Mapping[str, Any]:
            if name == self.silent:
                self.hung += 1
                await asyncio.sleep(3600)
            if name == "tasks":
                task = {"description": HTML, "prompts": [HTML, "put candy in bag"]}
                return {"tasks": {"ziploc": task, "fold_shirt": task}}
            if name == "episodes":
                return {"episodes": [], "left": 0}
            self.asked.append((name, arguments))
            if name == self.refuse:
                raise RolloutError(f"refused: {HTML}")
            return {"message": f"{name} done", "rows": []}

        return handle

    def show(self, **changes: Any) -> None:
        """Publish a state."""
        self.state |= changes
        self.server.publish(self.state)

    def names(self) -> list[str]:
        """Return what has been asked for."""
        return [name for name, _ in self.asked]


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
        expect(page.locator("#sentence")).to_have_text(STATE["sentence"])
        yield page


def asked(page: Page, panel: Panel, *names: str) -> None:
    """Wait until exactly this has been asked for."""
    for _ in range(600):
        if len(panel.asked) >= len(names):
            break
        page.wait_for_timeout(100)
    assert panel.names() == list(names)


def test_space_stops_from_anywhere_but_a_text_field(page: Page, panel: Panel) -> None:
    page.keyboard.press("Space")
    asked(page, panel, "stop")
    panel.show(unscored=UNSCORED)
    box = page.get_by_label("grasped")
    expect(box).to_be_focused()
    page.keyboard.press("Space")
    asked(page, panel, "stop", "stop")
    expect(box).not_to_be_checked()
    page.locator("#skip").focus()
    page.keyboard.press("Space")
    asked(page, panel, "stop", "stop", "stop")
    page.locator("#note").focus()
    page.keyboard.type("fell over a cable")
    expect(page.locator("#note")).to_have_value("fell over a cable")
    page.locator("#task").focus()
    page.keyboard.press("Space")
    asked(page, panel, *["stop"] * 4)
    page.locator("#to-episodes").click()
    page.keyboard.press("Space")
    asked(page, panel, *["stop"] * 5)


def test_once_a_trial_is_started_space_stops_wherever_the_name_was_typed(
    page: Page, panel: Panel
) -> None:
    page.locator("#operator").focus()
    page.locator("#start").dispatch_event("click")
    page.keyboard.press("Space")
    asked(page, panel, "start", "stop")


def test_stop_is_never_greyed_and_says_when_it_could_not(page: Page, panel: Panel) -> None:
    panel.refuse = "stop"
    panel.show(refusals=dict.fromkeys(STATE["refusals"], "the policy node does not answer"))
    expect(page.locator("#start")).to_have_attribute("aria-disabled", "true")
    expect(page.locator("#stop")).to_be_enabled()
    page.locator("#stop").click()
    expect(page.locator("#sentence")).to_contain_text("NOT STOPPED: refused")
    expect(page.locator("#sentence")).to_contain_text("emergency stop")
    assert panel.names() == ["stop"], "once, although a click is pressed and let go"


# What a hand does within some ms, in the page itself: its timers come in their order, however long
# the machine takes, while between two commands of this test any time may pass.
GESTURE = """async ([target, ...acts]) => {
  const element = document.querySelector(target);
  for (const act of acts) {
    if (typeof act === "number") await new Promise((done) => setTimeout(done, act));
    else if (act.startsWith("pointer")) element.dispatchEvent(new PointerEvent(act));
    else {
      const [type, key, repeat] = act.split(" ");
      const code = key === "Space" ? key : "";
      const init = { key, code, repeat: Boolean(repeat), bubbles: true, cancelable: true };
      element.dispatchEvent(new KeyboardEvent(type, init));
    }
  }
}"""


def test_arming_takes_a_second_of_holding(page: Page, panel: Panel) -> None:
    for acts in (
        ["pointerdown", "pointerup", 1200],
        ["pointerdown", 600, "pointerleave", 1200],  # slipped off
        ["pointerdown", 600, "pointercancel", 1200],
        ["keydown a", 600, "keyup a", 1200],
        ["keydown Enter", 600, "keyup Enter", 1200],
    ):
        page.evaluate(GESTURE, ["#arm", *acts])
        assert panel.names() == [], acts
    arm = page.locator("#arm")
    arm.hover()
    page.mouse.down()
    asked(page, panel, "arm")
    page.mouse.up()
    page.keyboard.down("a")
    asked(page, panel, "arm", "arm")
    page.keyboard.up("a")
    arm.focus()
    page.keyboard.down("Enter")
    asked(page, panel, "arm", "arm", "arm")
    page.keyboard.up("Enter")


def test_a_key_that_is_still_held_arms_nothing_once_more(page: Page, panel: Panel) -> None:
    """It repeats itself; arms that were stopped would have been armed again."""
    page.evaluate(GESTURE, ["body", "keydown a", 1100, "keydown Space", "keydown a repeat", 1200])
    asked(page, panel, "arm", "stop")


def test_a_stop_ends_the_arming(page: Page, panel: Panel) -> None:
    page.evaluate(GESTURE, ["body", "keydown a", 600, "keydown Space", 1200])
    asked(page, panel, "stop")


def test_what_happens_elsewhere_ends_the_arming(page: Page, panel: Panel) -> None:
    page.evaluate("document.querySelector('#arm').classList.add('held')")  # as while it is held
    panel.show(refusals=STATE["refusals"] | {"arm": "the arms go to the start pose"})
    expect(page.locator("#arm")).not_to_have_class("held")


def test_keys_alone_suffice(page: Page, panel: Panel) -> None:
    page.locator("#operator").fill("ann")
    page.keyboard.press("Tab")
    page.locator("#arm").focus()
    for key in "sprgec":
        page.keyboard.press(key)
    names = ["start", "pause", "resume", "go_to_start", "end", "self_check"]
    asked(page, panel, *names)
    assert panel.asked[0][1] == {"task": "ziploc", "prompt": HTML, "operator": "ann"}


def test_a_rig_with_leaders_is_led_by_keys(page: Page, panel: Panel) -> None:
    expect(page.locator("#teleoperation")).to_be_hidden()
    panel.show(leaders=True, demonstrations={"ziploc": 12, "shirt": 3})
    expect(page.locator("#demonstrations")).to_have_text(
        "Demonstrations so far: ziploc: 12, shirt: 3"
    )
    page.locator("#lead").focus()
    for key in "tdkbh":
        page.keyboard.press(key)
    asked(page, panel, "lead", "demonstrate", "clutch", "drop", "let_go")
    assert panel.asked[1][1] == {"task": "ziploc", "prompt": HTML, "operator": ""}


def test_what_would_be_refused_says_why_and_is_not_asked_for(page: Page, panel: Panel) -> None:
    reason = "the arms are disarmed: hold Arm first"
    panel.show(refusals=STATE["refusals"] | {"start": reason})
    expect(page.locator("#start")).to_have_attribute("aria-disabled", "true")
    page.locator("#start").click(force=True)  # Playwright itself clicks nothing grey
    expect(page.locator("#answer")).to_have_text(reason)
    assert panel.names() == []


def test_the_rubric_by_keys(page: Page, panel: Panel) -> None:
    panel.show(unscored=UNSCORED)
    expect(page.get_by_label("grasped")).to_be_focused()
    page.keyboard.press("1")
    page.keyboard.press("2")
    page.keyboard.press("Shift+1")
    expect(page.locator("#sum")).to_have_text("Sum: 90 of 100")
    expect(page.locator("#success")).to_be_checked()
    page.keyboard.press("2")
    expect(page.locator("#success")).not_to_be_checked()
    page.keyboard.press("y")
    page.keyboard.press("Enter")
    asked(page, panel, "score")
    score = panel.asked[0][1]
    assert score["episode"] == UNSCORED["episode"]
    assert (score["score"], score["stages"], score["deductions"]) == (
        None,
        ["grasped"],
        ["dropped"],
    )
    assert score["success"] is True
    panel.show(unscored=None)
    expect(page.locator("#rubric")).to_be_hidden()


def test_a_score_of_nothing_is_confirmed(page: Page, panel: Panel) -> None:
    panel.show(unscored=UNSCORED)
    expect(page.get_by_label("grasped")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#sum")).to_contain_text("Nothing is ticked")
    assert panel.names() == []
    page.keyboard.press("Enter")
    asked(page, panel, "score")
    assert panel.asked[0][1]["score"] == 0


def test_an_impossible_score_is_refused_in_place(page: Page, panel: Panel) -> None:
    panel.show(unscored=UNSCORED)
    page.locator("#score").fill("eighty")
    page.keyboard.press("Enter")
    expect(page.locator("#answer")).to_contain_text("'eighty' is no number")
    assert panel.names() == []
    panel.refuse = "score"
    page.locator("#score").fill("130")
    page.keyboard.press("Enter")
    expect(page.locator("#answer")).to_contain_text("refused")
    expect(page.locator("#score")).to_have_value("130")
    expect(page.locator("#rubric")).to_be_visible()


def test_a_discard_is_confirmed_by_a_second_press(page: Page, panel: Panel) -> None:
    panel.show(unscored=UNSCORED)
    button = page.locator("#discard")
    button.click()
    expect(button).to_have_text("Discard …")  # four seconds later
    assert panel.names() == []
    assert button.evaluate("b => { b.click(); return b.textContent; }") == "Really discard"
    while not panel.asked:  # a busy machine may take as long between two presses
        button.evaluate("b => { b.click(); b.click(); }")
        page.wait_for_timeout(200)
    assert set(panel.names()) == {"discard"}


def test_texts_from_anywhere_are_shown_as_text(page: Page, panel: Panel) -> None:
    candidate = {"value": 0.5, "spread": None, "finished": True}
    panel.show(
        sentence=HTML,
        policy=STATE["policy"] | {"task": HTML, "message": HTML},
        recorder=STATE["recorder"] | {"episode_id": HTML, "reasons": [HTML], "go": False},
        decision={
            "chunk": HTML,
            "requested": 1,
            "finished": 1,
            "chosen": 0,
            "reason": HTML,
            "candidates": [candidate],
        },
        refusal={"chunk": HTML, "joint": HTML, "message": HTML},
        unscored=UNSCORED | {"episode": HTML},
    )
    panel.refuse = "skip"
    page.locator("#skip").click()
    for place in ("#sentence", "#refusal", "#rubric-title", "#items", "#answer"):
        expect(page.locator(place)).to_contain_text(HTML)
    expect(page.locator("#prompt option").first).to_have_text(HTML)
    assert page.locator("body img, body b").count() == 0


def test_cameras_are_drawn_and_go_red_when_they_are_stale(page: Page, panel: Panel) -> None:
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 0] = 255
    note = {"age": 0.03, "freshness": "fresh", "problem": ""}
    panel.pictures["primary"] = Picture(1, to_jpeg(red), note)
    panel.pictures["imagined/primary"] = Picture(1, to_jpeg(red), {"chunk": "3", "problem": ""})
    shown = page.locator('figure[data-source="primary"]')
    expect(shown).to_have_class("fresh")
    expect(shown.locator("canvas")).to_have_attribute("data-shown", "1")
    expect(page.locator('figure[data-source="imagined/primary"]')).to_contain_text("chunk 3")
    panel.pictures["primary"] = Picture(1, b"", {"age": 0.7, "freshness": "stale", "problem": ""})
    expect(shown).to_have_class("stale")
    expect(shown).to_contain_text("0.7 s old")
    broken = {"age": 0.0, "freshness": "fresh", "problem": "12 of 48 rows are missing"}
    panel.pictures["primary"] = Picture(2, b"no image", broken)
    expect(shown).to_contain_text("12 of 48 rows are missing")
    expect(shown.locator("canvas")).to_have_attribute("data-shown", "1")


def test_all_fits_on_one_screen(browser: Browser, panel: Panel) -> None:
    candidates = [{"value": i / 8, "spread": 0.05, "finished": i < 7} for i in range(8)]
    panel.show(
        sentence="The arms hold: " + "a camera has been silent for 3.20 s; " * 4,
        decision={
            "chunk": "3",
            "requested": 8,
            "finished": 7,
            "chosen": 6,
            "reason": "the highest value",
            "candidates": candidates,
        },
        values=[[0.5, 0.2], [9.0, 0.8]],
        unscored=UNSCORED,
    )
    with tab(browser, panel.server.url) as page:
        expect(page.locator("#rubric")).to_be_visible()
        for selector in ("#stop", "#sentence", "#images", "#candidates", "#refusal-box", "#skip"):
            box = page.locator(selector).bounding_box()
            assert box is not None and box["height"] > 10, selector
            assert box["x"] >= 0 and box["x"] + box["width"] <= 1280, selector
            assert box["y"] >= 0 and box["y"] + box["height"] <= 720, selector
        expect(page.locator("#candidates")).to_have_attribute(
            "aria-label", "candidate 7 of 8 chosen, value 0.75; the highest value"
        )
    with tab(browser, panel.server.url, {"width": 820, "height": 1180}) as page:
        expect(page.locator("#rubric")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 820


def test_every_control_has_a_name_and_every_text_can_be_read(page: Page, panel: Panel) -> None:
    panel.show(refusals=STATE["refusals"] | {"start": "the arms are disarmed"})
    for tone in ("idle", "ready", "busy", "hold", "fault"):
        panel.show(tone=tone, unscored=UNSCORED if tone == "ready" else None)
        expect(page.locator("#sentence")).to_have_class(tone)
        assert page.evaluate(UNNAMED) == []
        assert page.evaluate(DIM) == []


def test_two_operators_see_the_same(browser: Browser, page: Page, panel: Panel) -> None:
    with tab(browser, panel.server.url) as other:
        panel.show(sentence="Running ziploc: the arms follow chunk 3. Space stops.")
        for each in (page, other):
            expect(each.locator("#sentence")).to_contain_text("chunk 3")
        panel.show(unscored=UNSCORED)
        for each in (page, other):
            expect(each.locator("#rubric")).to_be_visible()
        other.locator("#skip").click()
        asked(page, panel, "skip")
        panel.show(unscored=None)
        for each in (page, other):
            expect(each.locator("#rubric")).to_be_hidden()


def test_a_dead_panel_is_said_and_a_new_one_asks_for_its_token(page: Page, panel: Panel) -> None:
    page.locator("#start").click()
    asked(page, panel, "start")
    panel.server.close()
    expect(page.locator("#sentence")).to_contain_text("can stop nothing")
    expect(page.locator("#sentence")).to_contain_text("A run goes on without it")
    expect(page.locator("#start")).to_have_attribute("aria-disabled", "true")
    page.keyboard.press("Space")
    expect(page.locator("#sentence")).to_contain_text("NOT STOPPED")
    answers = {name: panel._handler(name) for name in ("tasks", "episodes")}
    again = PanelServer(Access(), panel.server.port, answers, dict, print)
    again.publish(STATE)
    expect(page.locator("#login")).to_be_visible()
    page.locator("#secret").fill(again.access.token)
    page.keyboard.press("Enter")
    expect(page.locator("#sentence")).to_have_text(STATE["sentence"])
    again.close()


def test_what_was_asked_for_before_a_break_is_asked_for_again(page: Page, panel: Panel) -> None:
    """The table of episodes stayed empty."""
    panel.silent = "episodes"
    page.locator("#to-episodes").click()
    while not panel.hung:
        page.wait_for_timeout(20)
    panel.silent = ""

    async def cut() -> None:
        for session in tuple(panel.server.sessions):
            session.close()

    panel.server.spawn(cut)
    expect(page.locator("#episodes")).to_contain_text("No episode yet.")


def test_a_new_address_in_the_same_tab_is_taken(page: Page, panel: Panel) -> None:
    """Only what follows # differs, and so nothing is loaded anew."""
    page.evaluate("localStorage.setItem('token', 'of an earlier start')")
    page.reload()
    expect(page.locator("#login")).to_be_visible()
    page.evaluate("address => { location.hash = address.split('#')[1]; }", panel.server.url)
    expect(page.locator("#sentence")).to_have_text(STATE["sentence"])
    assert "token" not in page.url


def test_a_silent_panel_is_noticed(page: Page, panel: Panel) -> None:
    """A network that goes away closes no socket."""
    panel.server._loop.call_soon_threadsafe(panel.server._loop.stop)
    expect(page.locator("#sentence")).to_contain_text("can stop nothing")


def test_sound_tells_a_hold_from_an_end(page: Page, panel: Panel) -> None:
    panel.show(tone="hold", sentence="The arms hold")
    expect(page.locator("body")).to_have_attribute("data-sounded", "330 247")
    panel.show(tone="busy", policy=STATE["policy"] | {"run_id": "1f"})
    panel.show(tone="ready", policy=STATE["policy"] | {"run_id": ""})
    expect(page.locator("body")).to_have_attribute("data-sounded", "523 784")
