"""A blind trial on the running graph by clicks: prepared, run, scored, sealed in its bag."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.browser import chromium, tab, text_of
from helpers.realtime import RealTimeGraph
from helpers.waiting import wait_for
from playwright.sync_api import Page, expect

from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.folders import State, scan
from cosmos_policy_ros.episodes.trial_info import opened_metadata, read_trial

URL = re.compile(r"operator's page: (\S+)")
STATE = 200007
PROTOCOL = f"""
name: clicked
order_seed: 0  # Fabergé comes first
contenders:
  - {{name: Fabergé, engine: demonstrator}}
  - {{name: Cellini, checkpoint: /nowhere/kept}}
groups:
  - task: either_cube
    condition: out_of_distribution
    setup: Two cubes.
    states: [{{number: {STATE}, place: the red one to the left}}]
"""
TELLING = re.compile(r"Faberg|Cellini|demonstrator|nowhere", re.IGNORECASE)
# What a hand does within some ms.
START_AND_STOP = """() => ["s", " "].forEach((key) => document.body.dispatchEvent(new KeyboardEvent(
  "keydown", { key, code: key === " " ? "Space" : "", bubbles: true, cancelable: true })))"""


class Panelled(RealTimeGraph):
    """A graph whose panel has a protocol of two trials."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "clicked.yaml").write_text(PROTOCOL)
        self.root = folder / "rollouts"
        super().__init__(
            folder,
            patient=True,
            record=True,
            panel=True,
            panel_port=0,
            root=str(self.root),
            engine="demonstrator",
            task="either_cube",
            width=160,
            height=120,
            images="jpeg",
            protocol=str(folder / "clicked.yaml"),
            protocol_output=str(folder / "tables"),
        )
        wait_for(lambda: URL.search(self.log("operator_panel")), "the panel's address")
        found = URL.search(self.log("operator_panel"))
        assert found is not None
        self.url = found[1]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Panelled]:
    with Panelled(tmp_path_factory.mktemp("trials")) as graph:
        yield graph


def prepare(page: Page) -> None:
    expect(page.locator("#prepare")).to_have_attribute("aria-disabled", "false")
    page.keyboard.press("l")
    expect(page.locator("#sentence")).to_contain_text("lay the state out until it matches")


def arm(page: Page) -> None:
    """Hold the key until it is armed: a busy machine is late."""
    while "ARMED" not in text_of(page, "#nodes"):
        page.keyboard.down("a")
        page.wait_for_timeout(1500)
        page.keyboard.up("a")
        page.wait_for_timeout(500)


def run_until_scored(page: Page) -> None:
    """Make the trial until it waits for its score: what a busy machine breaks off is a fault.

    That is made again; its sentence may pass unseen, and what follows is told a moment later.
    """
    sentence, rubric = page.locator("#sentence"), page.locator("#rubric")
    while True:
        known = "#rubric:visible, #prepare[aria-disabled=false], #sentence.hold"
        expect(page.locator(known).first).to_be_visible()
        if rubric.is_visible():
            return
        if "The arms hold" in text_of(page, "#sentence"):
            page.keyboard.press("x")
            expect(page.locator("#nodes")).to_contain_text("disarmed")
        page.keyboard.press("l")
        expect(sentence).to_contain_text(re.compile("lay the state out until|Score episode"))
        if rubric.is_visible():
            return
        arm(page)
        page.keyboard.press("s")
        over = "Score episode|made again|The arms hold"
        expect(sentence).to_contain_text(
            re.compile(f"arms follow chunk|Prepare|stopped|refused|{over}")
        )
        if "arms follow chunk" in text_of(page, "#sentence"):
            page.keyboard.press("e")
            expect(sentence).to_contain_text(re.compile(over))


def test_a_blind_trial_by_clicks(graph: Panelled) -> None:
    heard: list[str] = []

    def keep(payload: str | bytes) -> None:
        text = payload if isinstance(payload, str) else payload[: 4 + 4000].decode(errors="replace")
        heard.append(text)

    with chromium() as browser, tab(browser, graph.url) as page:
        page.on("websocket", lambda socket: socket.on("framereceived", keep))
        page.reload()
        expect(page.locator("#trials-title")).to_have_text("Trial 1 of 2")
        expect(page.locator("#trials-facts")).to_contain_text("either_cube, out of distribution")
        expect(page.locator("#trials-facts")).to_contain_text("the red one to the left")
        expect(page.locator("#start")).to_have_attribute("title", re.compile("Prepare|disarmed"))
        page.locator("#operator").fill("ann")
        page.keyboard.press("Tab")
        prepare(page)
        assert graph.client.rig_state is not None
        assert graph.client.rig_state.seed == STATE, "the scene is the state's"
        arm(page)
        page.evaluate(START_AND_STOP)
        expect(page.locator("#nodes")).to_contain_text("disarmed")
        expect(page.locator("#answer")).to_contain_text(re.compile("stopped|disarmed"))
        expect(page.locator("#sentence")).to_contain_text("Trial 1 of 2")
        assert not page.locator("#rubric").is_visible(), "no run has begun"
        run_until_scored(page)
        expect(page.locator("#skip")).to_be_hidden()
        expect(page.locator("#nodes")).to_contain_text("disarmed")
        page.locator("#items input").first.click()
        page.keyboard.press("Enter")
        expect(page.locator("#trials-title")).to_have_text("Trial 2 of 2")
        assert page.locator("#candidates:visible, .imagined:visible").count() == 0
        expect(page.locator("#prepare")).to_have_attribute("aria-disabled", "false")
        page.keyboard.press("l")
        expect(page.locator("#sentence")).to_contain_text("No contender could be loaded")
        page.keyboard.press("Space")
        expect(page.locator("#answer")).to_contain_text("nothing moves")
        assert not TELLING.search(page.content())
    assert any('"trials"' in each for each in heard)
    assert not [each for each in heard if TELLING.search(each)]
    states = [json.loads(each)["state"] for each in heard if each.startswith('{"state": {')]
    assert any(state["policy"]["run_id"] for state in states), "a run was watched"
    assert all(state["decision"] is None and state["values"] == [] for state in states)
    (path,) = [each.path for each in scan(graph.root) if each.state is State.FINISHED]
    episode = read_episode(path)
    trial = read_trial(episode.metadata)
    assert trial is not None and trial.sealed and not trial.contender
    assert (trial.evaluation, trial.condition, trial.state) == (
        "clicked",
        "out_of_distribution",
        STATE,
    )
    assert episode.metadata.engine == "" and episode.metadata.operator_name == "ann"
    assert episode.score is not None and episode.score.points == 25.0
    opened = json.loads(opened_metadata(episode.metadata).trial)
    assert opened["contender"] == "Fabergé"
