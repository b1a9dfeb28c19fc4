"""The operator's page on the running graph: a whole trial by clicks and keys, and what dies."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cosmos_policy_ros.msg import RecorderState
from helpers.browser import chromium, tab, text_of
from helpers.realtime import RealTimeGraph
from helpers.waiting import wait_for
from playwright.sync_api import Browser, Page, expect

from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.nodes import shell

URL = re.compile(r"operator's page: (\S+)")


class Panelled(RealTimeGraph):
    """A graph with a panel, and what its recorder says."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder,
            patient=True,
            record=True,
            panel=True,
            panel_port=0,
            root=str(folder / "rollouts"),
            engine="cosmos",
            checkpoint="tiny",
            task="either_cube",
            width=160,
            height=120,
            images="jpeg",
        )
        self.recorder = RecorderState()

        def keep(message: RecorderState) -> None:
            self.recorder = message

        self.client.node.create_subscription(
            RecorderState, "recorder_node/state", keep, shell.LATCHED
        )
        wait_for(lambda: URL.search(self.log("operator_panel")), "the panel's address")

    @property
    def url(self) -> str:
        """The address that the panel has printed since it was started last."""
        found = URL.search(self.log("operator_panel"))
        assert found is not None
        return found[1]

    def kill(self, node: str) -> None:
        """End a node without a word."""
        os.kill(self.pid(node), signal.SIGKILL)

    def restart_panel(self) -> None:
        """Start another panel."""
        self._start(self._nodes["operator_panel"])
        wait_for(lambda: URL.search(self.log("operator_panel")), "the panel's address")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Panelled]:
    with Panelled(tmp_path_factory.mktemp("panel")) as graph:
        yield graph


@pytest.fixture
def page(browser: Browser, graph: Panelled) -> Iterator[Page]:
    with tab(browser, graph.url) as page:
        expect(page.locator("#nodes li.alive")).to_have_count(4)
        yield page


def arm(page: Page) -> None:
    """Look at the self-check until all passes, then hold the key: a busy machine is late."""
    while True:
        if page.locator("#rubric").is_visible():  # a run that was broken off may ask late
            page.locator("#skip").click()
            expect(page.locator("#rubric")).to_be_hidden()
        page.keyboard.press("c")
        expect(page.locator("#check-rows tr.passed:visible, #rubric:visible").first).to_be_visible()
        if page.locator("#rubric").is_visible():
            continue
        page.keyboard.down("a")
        expect(page.locator("#answer")).not_to_be_empty()
        page.wait_for_timeout(1500)
        page.keyboard.up("a")
        if "ARMED" in text_of(page, "#nodes"):
            return


def disarm(page: Page) -> None:
    """Disarm, whether that is needed or not."""
    page.keyboard.press("x")
    expect(page.locator("#nodes")).to_contain_text("disarmed")


def start(page: Page) -> None:
    """Arm and start until a chunk is being executed, leaving out what a busy machine broke off.

    Kept waiting for 0.3 s, a node has the arms held, and the operator begins again.
    """
    while True:
        arm(page)
        page.keyboard.press("s")
        expect(page.locator("#sentence")).to_contain_text(
            re.compile("arms follow chunk|Score episode|Disarmed|The arms hold|press End trial")
        )
        if "arms follow chunk" in text_of(page, "#sentence"):
            return
        if "press End trial" in text_of(page, "#sentence"):  # the recorder's answer came too late
            page.keyboard.press("e")
            expect(page.locator("#sentence")).not_to_contain_text("press End trial")
        disarm(page)


def test_a_whole_trial_by_clicks_and_keys(page: Page, graph: Panelled) -> None:
    page.locator("#operator").fill("ann")
    page.locator("#reset").click()
    prompt = page.locator("#prompt").input_value()
    assert prompt
    expect(page.locator("#answer")).to_contain_text(f"objects placed for '{prompt}'")
    page.locator("#self_check").click()
    expect(page.locator("#check-rows tr").first).to_be_visible()
    start(page)
    expect(page.locator("#recording")).to_contain_text("REC")
    expect(page.locator("#candidates-title")).to_contain_text("1 of 1")
    for role in ("left_wrist", "primary", "right_wrist"):
        camera = page.locator(f'figure[data-source="{role}"] canvas')
        expect(camera).to_have_attribute("data-shown", re.compile(r"\d{2,}"))
        imagined = page.locator(f'figure[data-source="imagined/{role}"] canvas')
        expect(imagined).to_have_attribute("data-shown", re.compile(r"\d+"))
    page.keyboard.press("e")
    expect(page.locator("#rubric")).to_be_visible()
    episode = text_of(page, "#rubric-title").removeprefix("Score ")
    expect(page.locator("#start")).to_have_attribute("aria-disabled", "true")
    page.locator("#score").fill("130")
    page.keyboard.press("Enter")
    expect(page.locator("#answer")).to_contain_text("130.0 must be a number from 0 to 100")
    page.locator("#score").fill("")
    page.locator("#items input").first.click()
    page.locator("#note").fill("by hand")
    page.keyboard.press("Enter")
    expect(page.locator("#rubric")).to_be_hidden()
    recorded = read_episode(Path(graph.recorder.path))
    assert recorded.id == episode
    assert recorded.metadata.operator_name == "ann"
    assert recorded.score is not None
    assert (recorded.score.points, recorded.score.note) == (25.0, "by hand")
    assert recorded.outcome in ("cancelled", "fault"), "ended by hand, or by a busy machine"
    disarm(page)


def test_stop_with_three_tabs_open(browser: Browser, page: Page, graph: Panelled) -> None:
    with tab(browser, graph.url) as second, tab(browser, graph.url) as third:
        start(page)
        for each in (second, third):
            expect(each.locator("#nodes")).to_contain_text("ARMED")
        third.keyboard.press("Space")
        for each in (page, second, third):
            expect(each.locator("#nodes")).to_contain_text("disarmed")
    assert graph.client.policy_state is not None and not graph.client.policy_state.armed
    expect(page.locator("#rubric")).to_be_visible()
    page.locator("#skip").click()


def test_a_frozen_camera_goes_red(page: Page, graph: Panelled) -> None:
    shown = page.locator('figure[data-source="primary"]')
    disarm(page)
    expect(shown).to_have_class("fresh")
    graph.faults("camera_frozen:primary")
    expect(shown).to_have_class("stale")
    expect(page.locator('figure[data-source="left_wrist"]')).to_have_class("fresh")
    failed = page.locator("#check-rows tr.failed")
    while not failed.count():  # the page is more impatient than the policy node
        page.keyboard.press("c")
        page.wait_for_timeout(300)
    expect(failed.first).to_contain_text("frozen")
    expect(failed.first).to_contain_text("→")
    page.keyboard.down("a")
    expect(page.locator("#answer")).to_contain_text("refused")
    page.keyboard.up("a")
    graph.faults()
    expect(shown).to_have_class("fresh")


def test_a_run_goes_on_without_its_panel(page: Page, graph: Panelled, browser: Browser) -> None:
    start(page)
    state = graph.client.policy_state
    assert state is not None and state.run_id
    run, chunks = state.run_id, state.chunks
    graph.kill("operator_panel")
    expect(page.locator("#sentence")).to_contain_text("can stop nothing")
    graph.wait(
        lambda: (
            graph.client.policy_state.run_id != run  # a busy machine's end
            or graph.client.policy_state.chunks > chunks
        ),
        "another chunk",
    )
    assert graph.recorder.phase == "recording"
    graph.restart_panel()
    with tab(browser, graph.url) as again:
        expect(again.locator("#nodes li.alive")).to_have_count(4)
        expect(again.locator("#recording")).to_contain_text("REC")
        while graph.recorder.phase == "recording":  # its run first; this panel has begun neither
            again.keyboard.press("e")
            again.wait_for_timeout(500)
        expect(again.locator("#rubric")).to_be_visible()
        while again.locator("#rubric").is_visible():  # the confirmation counts for four seconds
            again.locator("#discard").click()
            again.wait_for_timeout(300)
        again.keyboard.press("x")
    assert graph.recorder.path.endswith(".discarded") or not Path(graph.recorder.path).exists()


def test_a_node_that_dies_is_named_and_what_needs_it_is_grey(page: Page, graph: Panelled) -> None:
    graph.kill("recorder_node")
    expect(page.locator("#nodes li.lost")).to_have_text("recorder: lost")
    expect(page.locator("#sentence")).to_contain_text("The recorder does not answer any more")
    page.keyboard.press("s")
    expect(page.locator("#answer")).to_contain_text("The recorder does not answer any more")
    graph.kill("policy_node")
    expect(page.locator("#sentence")).to_contain_text("The policy node does not answer any more")
    for name in ("arm", "start", "pause", "self_check"):
        expect(page.locator(f"button#{name}")).to_have_attribute("aria-disabled", "true")
    page.keyboard.press("Space")
    expect(page.locator("#sentence")).to_contain_text("NOT STOPPED")
