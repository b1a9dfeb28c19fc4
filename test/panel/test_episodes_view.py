"""Pins the researcher's view in a real browser: by keys, by clicks, whatever a bag's texts say."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.broken_bags import cut
from helpers.browser import DIM, UNNAMED, chromium, tab
from helpers.episodes import CAMERA_PERIOD, START_NS, record
from helpers.planned import IMAGINED, record_planned
from helpers.view_server import Served, serving
from helpers.waiting import wait_for
from playwright.sync_api import Browser, Locator, Page, expect
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.panel.server import STATIC

HTML = '<img src="x" onerror="document.title=1"><b>bold</b>'
DASH = "\u2013"
FRAME = CAMERA_PERIOD / 1000
SIZES = {"desktop": (1280, 720), "tablet": (1024, 768)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, types: Typestore) -> Path:
    """Three episodes: one planned, one with HTML for its texts, one that was cut off."""
    store = EpisodeStore(tmp_path_factory.mktemp("recorded"), types, clock=lambda: START_NS)
    record_planned(store, types)
    hostile = {"task": "insertion", "operator_name": HTML, "prompt": HTML, "checkpoint": HTML}
    path = record(store, types, 0.5, **hostile)
    given = OperatorScore(90, True, note=HTML, operator_name=HTML)
    store.score(given, episode=path.name)
    cut(record(store, types, 0.5))
    return store.root


@pytest.fixture
def store(recorded: Path, tmp_path: Path, types: Typestore) -> EpisodeStore:
    return EpisodeStore(Path(shutil.copytree(recorded, tmp_path / "rollouts")), types)


@pytest.fixture
def served(store: EpisodeStore) -> Iterator[Served]:
    with serving(store) as found:
        yield found


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    """A page that must not complain, as it would of what its policy forbids."""
    complaints: list[str] = []
    with tab(browser, served.server.url) as opened:
        opened.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
        expect(opened.locator("#nodes .alive")).to_have_text("recorder")
        yield opened
    assert complaints == []


def view(page: Page) -> Locator:
    return page.locator("#episodes")


def planned_id(store: EpisodeStore) -> str:
    return next(iter(store.episodes()))


def open_planned(page: Page, served: Served, store: EpisodeStore, query: str = "") -> None:
    page.goto(f"{served.base}#/episodes/{planned_id(store)}{query}")
    page.wait_for_selector(".ep-seen canvas[aria-label*='at']")


def rows(page: Page) -> list[str]:
    """Return the tasks of the table's lines, from above."""
    return page.locator("tr.ep-row td:nth-child(3)").all_text_contents()


def moment(page: Page) -> float:
    return float(view(page).get_by_label("Moment of the episode").input_value())


def mean(page: Page, selector: str) -> float:
    """Return the mean brightness of a canvas."""
    script = """(canvas) => {
      const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      let sum = 0;
      for (let i = 0; i < data.length; i += 4) sum += data[i] + data[i + 1] + data[i + 2];
      return sum / (0.75 * data.length);
    }"""
    return float(page.locator(selector).first.evaluate(script))


# ---------------------------------------------------------------- the table


def test_the_table_is_filtered_and_sorted(page: Page, served: Served) -> None:
    page.goto(f"{served.base}#/episodes")
    expect(page.locator(".ep-count")).to_have_text("3 of 3 episodes")
    assert rows(page) == [DASH, "insertion", "transfer_cube"]  # the newest first
    expect(page.locator(".ep-told")).to_contain_text("cosmos recover")
    view(page).get_by_label("Task").select_option("transfer_cube")
    expect(page.locator(".ep-count")).to_have_text("1 of 3 episodes")
    view(page).get_by_label("Task").select_option("")
    view(page).get_by_label("Score").select_option("scored")
    assert rows(page) == ["insertion", "transfer_cube"]
    view(page).get_by_label("Score").select_option("success")
    assert rows(page) == ["insertion"]
    view(page).get_by_label("Score").select_option("scored")
    view(page).get_by_label("Planning").select_option("best of 3")
    assert rows(page) == ["transfer_cube"]
    view(page).get_by_label("Planning").select_option("")
    view(page).get_by_label("Score").select_option("")
    view(page).get_by_label("Search").fill("SLIPPED")  # of the note
    assert rows(page) == ["transfer_cube"]
    view(page).get_by_label("Search").fill("")
    head = view(page).get_by_role("columnheader", name="Score")
    head.get_by_role("button").click()
    expect(head).to_have_attribute("aria-sort", "ascending")
    assert rows(page) == ["transfer_cube", "insertion", DASH]
    head.get_by_role("button").press("Enter")
    expect(head).to_have_attribute("aria-sort", "descending")
    assert rows(page) == ["insertion", "transfer_cube", DASH]  # what has none stays last


def test_keys_alone_lead_to_an_episode(page: Page, served: Served, store: EpisodeStore) -> None:
    page.goto(f"{served.base}#/episodes")
    page.locator("tr.ep-row a").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(view(page).locator("h2")).to_have_text(planned_id(store))
    view(page).get_by_role("link", name="All episodes").press("Enter")
    expect(page.locator(".ep-count")).to_have_text("3 of 3 episodes")


def test_texts_of_a_bag_are_shown_as_text(page: Page, served: Served, store: EpisodeStore) -> None:
    page.goto(f"{served.base}#/episodes")
    expect(page.locator("tr.ep-row").nth(1)).to_contain_text(HTML)
    view(page).get_by_role("link", name="insertion").click()
    expect(page.locator(".ep-facts")).to_contain_text(HTML)
    expect(page.locator(".ep-list", has_text="score 90")).to_contain_text(HTML)
    assert page.locator("#episodes b, #episodes img").count() == 0 and page.title() != "1"


def test_an_episode_that_cannot_be_read_says_what_to_do(page: Page, served: Served) -> None:
    page.goto(f"{served.base}#/episodes")
    page.locator("tr.ep-row").first.click()
    expect(view(page).get_by_role("alert")).to_contain_text("cosmos recover")
    page.goto(f"{served.base}#/episodes/none")
    expect(view(page).get_by_role("alert")).to_contain_text("the newest is")


def test_values_against_scores(page: Page, served: Served) -> None:
    page.goto(f"{served.base}#/episodes")
    view(page).get_by_text("Predicted values against the scores").click()
    status = page.locator(".ep-calibration [role=status]")
    expect(status).to_contain_text("3 decisions of 1 scored episodes")
    expect(status).to_contain_text("predicted less obtained 0.20")
    cells = page.locator(".ep-calibration tbody tr").first.locator("td").all_text_contents()
    assert cells == ["0.6 to 0.7", "1", "0.60", "0.50"]
    assert mean(page, ".ep-scatter") > 0


# ---------------------------------------------------------------- one episode


def test_a_link_leads_to_its_moment(page: Page, served: Served, store: EpisodeStore) -> None:
    open_planned(page, served, store, "?t=1.21")
    expect(page.locator(".ep-clock")).to_have_text("1.21 s of 3.99 s")
    seen = page.locator(".ep-seen canvas").first
    expect(seen).to_have_attribute("aria-label", re.compile(r"at 1\.20 s$"))
    expect(page.locator(".ep-reached figcaption").first).to_have_text("reached at 1.48 s")
    expect(page.locator(".ep-imagined figcaption").first).to_have_text("imagined at 0.00 s")
    assert mean(page, ".ep-imagined canvas") == pytest.approx(IMAGINED, abs=2)
    assert 30 < mean(page, ".ep-seen canvas") < 180
    view(page).get_by_role("button", name="Copy link").click()
    expect(view(page).get_by_text("copied", exact=True)).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == f"{served.base}#/episodes/{planned_id(store)}?t=1.21"


def test_keys_step_and_play(page: Page, served: Served, store: EpisodeStore) -> None:
    open_planned(page, served, store, "?t=1.2")
    page.keyboard.press("ArrowRight")
    assert moment(page) == pytest.approx(1.2 + FRAME)
    view(page).get_by_label("Moment of the episode").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert moment(page) == pytest.approx(1.2 - FRAME)
    page.keyboard.press("Shift+ArrowRight")
    assert moment(page) == pytest.approx(2.2 - FRAME)
    page.wait_for_url(re.compile(r"t=2\.16$"))
    view(page).locator("h2").click()
    page.keyboard.press("Space")  # stops the arms, everywhere on the page: it does not play
    view(page).get_by_label("Moment of the episode").press("Space")
    wait_for(lambda: [name for name, _ in served.asked].count("stop") == 2, "both stops")
    assert view(page).get_by_role("button", name="Play (p)").is_visible()
    page.keyboard.press("p")
    expect(view(page).get_by_role("button", name="Pause (p)")).to_be_visible()
    expect(page.locator(".ep-clock")).to_have_text(re.compile(r"^(2\.[5-9]|3)"))
    page.keyboard.press("p")
    expect(view(page).get_by_role("button", name="Play (p)")).to_be_visible()
    # In a text field they are letters.
    before = moment(page)
    view(page).get_by_label("Note").press_sequentially("pip")
    view(page).get_by_label("Note").press("ArrowLeft")
    assert moment(page) == before and view(page).get_by_label("Note").input_value() == "pip"


def test_a_plot_leads_to_its_moment(page: Page, served: Served, store: EpisodeStore) -> None:
    open_planned(page, served, store)
    for selector in ("canvas.ep-values", "canvas.ep-arm"):
        plot = page.locator(selector).first
        assert mean(page, selector) > 1
        box = plot.bounding_box()
        assert box is not None
        left, width = 112, box["width"] - 112 - 78
        plot.click(position={"x": left + width / 2, "y": 20})
        assert moment(page) == pytest.approx(2.0, abs=0.05)
        page.mouse.down()
        page.mouse.move(box["x"] + left + width / 4, box["y"] + 20)
        page.mouse.up()
        assert moment(page) == pytest.approx(1.0, abs=0.05)


def test_a_decision_shows_every_candidate(page: Page, served: Served, store: EpisodeStore) -> None:
    open_planned(page, served, store, "?t=1.0")
    expect(view(page).get_by_text("Decision 1 of 3")).to_be_visible()
    bars = page.locator(".ep-bars li")
    assert bars.locator(".ep-value").all_text_contents() == [
        "0.300 ± 0.100",
        "0.600 ± 0.100 chosen",
        "not in time",
    ]
    track = bars.nth(1).locator(".ep-track").bounding_box()
    fill = bars.nth(1).locator(".ep-fill").bounding_box()
    assert track and fill and fill["width"] / track["width"] == pytest.approx(0.6, abs=0.01)
    side = page.locator(".ep-side")
    expect(side).to_contain_text("2 of 3 candidates in time, spread 0.100")
    expect(side).to_contain_text("Predicted 0.60, obtained 0.50.")
    view(page).get_by_role("button", name="Next decision").click()
    expect(view(page).get_by_text("Decision 2 of 3")).to_be_visible()
    assert moment(page) == pytest.approx(1.6)  # when the gate had judged it
    view(page).get_by_role("button", name="Decision before").click()
    expect(view(page).get_by_text("Decision 1 of 3")).to_be_visible()


def test_a_refusal_names_joint_value_and_limit(
    page: Page, served: Served, store: EpisodeStore
) -> None:
    open_planned(page, served, store)
    gate = page.locator("section", has=page.get_by_role("heading", name="Safety gate")).last
    expect(gate).to_contain_text("2 of 3 chunks accepted")
    expect(gate).to_contain_text("step_speed. right/waist, row 3, 4.500 where 3.100 is allowed.")
    expect(gate).to_contain_text("right/waist is too fast: try again")
    gate.get_by_role("button", name="1.6 s").click()
    assert moment(page) == pytest.approx(1.6)


# ---------------------------------------------------------------- scoring and discarding


def test_a_score_is_given_again_and_the_old_one_stays(
    page: Page, served: Served, store: EpisodeStore
) -> None:
    open_planned(page, served, store, "?t=1.5")
    boxes = {
        name: view(page).get_by_label(f"{name} (+25)") for name in ("touched", "lifted", "met")
    }
    assert [box.is_checked() for box in boxes.values()] == [True, True, False]
    boxes["met"].press("Enter")  # space is stop
    expect(view(page).get_by_text("75 of 100 by the boxes")).to_be_visible()
    view(page).get_by_label("Total").fill("40")
    view(page).get_by_role("button", name="Write the score").click()
    expect(view(page).get_by_text("score: 40 is not the 75 that the stages")).to_be_visible()
    view(page).get_by_label("Total").fill("")
    view(page).get_by_label("the task was done").check()
    view(page).get_by_label("Note").fill("looked <twice>")
    view(page).get_by_label("Scored by").fill("bob")
    view(page).get_by_role("button", name="Write the score").press("Enter")
    expect(view(page).get_by_text("score 75, success: looked <twice>")).to_be_visible()
    expect(view(page).get_by_text("score 50, no success: slipped")).to_be_visible()
    assert moment(page) == pytest.approx(1.5)
    args = dict(served.asked)["score"]
    assert args == {
        **{"episode": planned_id(store), "stages": ["touched", "lifted", "met"], "deductions": []},
        **{"success": True, "note": "looked <twice>", "operator": "bob"},
    }


def test_a_score_needs_stages_or_a_total(page: Page, served: Served, store: EpisodeStore) -> None:
    open_planned(page, served, store)
    for name in ("touched", "lifted"):
        view(page).get_by_label(f"{name} (+25)").uncheck()
    view(page).get_by_role("button", name="Write the score").click()
    expect(view(page).get_by_text("Tick the stages that were reached")).to_be_visible()
    assert "score" not in dict(served.asked)


def test_without_a_recorder_nothing_is_sent(
    page: Page, served: Served, store: EpisodeStore
) -> None:
    open_planned(page, served, store)
    served.tell(nodes={"policy_node": "alive", "recorder_node": "lost"})
    button = view(page).get_by_role("button", name="Write the score")
    expect(button).to_have_attribute("aria-disabled", "true")
    button.click(force=True)  # which says why, where a truly disabled one could not
    expect(view(page).get_by_text("The recorder does not answer")).to_be_visible()
    assert "score" not in dict(served.asked)
    served.tell()
    expect(button).to_have_attribute("aria-disabled", "false")


def test_discarding_asks_once_more(page: Page, served: Served, store: EpisodeStore) -> None:
    open_planned(page, served, store)
    view(page).get_by_role("button", name="Discard…").click()  # a reason is required
    assert view(page).get_by_role("button", name="Discard it").count() == 0
    view(page).get_by_label("Reason").fill("a hand was in the way")
    view(page).get_by_label("Reason").press("Enter")
    expect(view(page).get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Enter")
    expect(view(page).get_by_role("button", name="Discard…")).to_be_focused()
    page.keyboard.press("Enter")
    view(page).get_by_role("button", name="Discard it").click()
    expect(view(page).get_by_role("heading", name="Discarded")).to_be_visible()
    expect(page.locator(".ep-head")).to_contain_text("discarded: a hand was in the way")
    assert dict(served.asked)["discard"]["reason"] == "a hand was in the way"
    assert store.find(planned_id(store)).name.endswith(".discarded")


# ---------------------------------------------------------------- for everyone


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("what", ["table", "episode"])
def test_nothing_is_cut_off_or_too_dim(
    page: Page, served: Served, store: EpisodeStore, size: str, what: str
) -> None:
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    if what == "episode":
        open_planned(page, served, store, "?t=1")
        lowest = page.locator("canvas.ep-arm").first.bounding_box()
        assert lowest and lowest["y"] + lowest["height"] <= height
    else:
        page.goto(f"{served.base}#/episodes")
        page.wait_for_selector("tr.ep-row")
        view(page).get_by_text("Predicted values against the scores").click()
        page.wait_for_selector(".ep-calibration td")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(UNNAMED) == []
    assert page.evaluate(DIM) == []


def test_no_text_becomes_markup() -> None:
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|https?://"
    )
    scripts = sorted(STATIC.glob("*.js"))
    assert scripts
    found: dict[str, Any] = {path.name: forbidden.findall(path.read_text()) for path in scripts}
    assert not any(found.values()), found
