"""Pins the demonstrator: succeeds from images alone, keeps the limits, says what it lacks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.sim_loop import SPEC, episode, observe
from numpy.typing import NDArray

from cosmos_policy_ros.core.errors import ObservationError
from cosmos_policy_ros.rig.decision import Query
from cosmos_policy_ros.sim.demonstrator import SCRIPTS, Demonstrator, PrimarySight, Variation
from cosmos_policy_ros.sim.render import Renderer
from cosmos_policy_ros.sim.rig import SimRig

SPEED = np.pi * 0.04


def settled(task: str, seed: int) -> SimRig:
    rig = SimRig(task, seed)
    rig.advance(0.2)
    return rig


def at(query: Query, state: NDArray[np.float64]) -> Query:
    return replace(query, observation=replace(query.observation, state=state))


@pytest.fixture(scope="module")
def query() -> Query:
    rig = settled("transfer_cube", 3)
    with Renderer("transfer_cube", 128, 128) as renderer:
        return Query("transfer_cube", "", 3, 0, observe(rig, renderer))


@pytest.mark.parametrize(
    ("task", "seeds"), [("transfer_cube", 4), ("insertion", 3), ("either_cube", 2)]
)
def test_succeeds_on_seeds_chosen_beforehand(task: str, seeds: int) -> None:
    """Also with images that are not square, and with a rest between chunks."""
    rig = SimRig(task)
    reached = []
    with Renderer(task, 96, 128) as renderer:
        for seed in range(seeds):
            rig.reset(task, seed)
            rig.advance(0.2)
            pause = 0.7 if seed == 1 else 0.0
            reached.append(episode(rig, renderer, Demonstrator(), pause=pause))
    assert reached == [4] * seeds


def test_either_cube_is_taken_about_as_often_and_a_named_one_always() -> None:
    rig = settled("either_cube", 2)
    with Renderer("either_cube", 128, 128) as renderer:
        seen = observe(rig, renderer)

    def way(seed: int, prompt: str = "hand over a cube") -> NDArray[np.float64]:
        policy = Demonstrator(jitter=0.0)
        return policy.decide(Query("either_cube", prompt, seed, 0, seen)).positions

    drawn = [Variation.draw(seed, 0.0).choice < 0.5 for seed in range(100)]
    assert 35 <= sum(drawn) <= 65
    red, blue = (way(0, f"hand over the {colour} cube") for colour in ("red", "blue"))
    assert not np.allclose(red, blue, atol=1e-3)  # the cubes lie 12 cm apart or more
    np.testing.assert_array_equal(way(drawn.index(True)), red)
    np.testing.assert_array_equal(way(drawn.index(False)), blue)
    np.testing.assert_array_equal(way(drawn.index(False), "hand over the red cube"), red)


def test_chunks_start_at_the_state_keep_the_speed_and_end_in_a_hold(query: Query) -> None:
    policy = Demonstrator()
    chunks = []
    asked = query
    for index in range(9):
        decision = policy.decide(replace(asked, index=index))
        assert decision.positions.shape == (50, 14)
        assert (decision.dt, decision.engine) == (0.04, "demonstrator")
        chunks.append(decision.positions)
        asked = at(query, decision.positions[-1])
    rows = np.vstack(chunks)
    arms = [*range(6), *range(7, 13)]
    assert np.abs(rows[0] - query.observation.state)[arms].max() < 0.01
    assert np.abs(np.diff(rows[:, arms], axis=0)).max() <= SPEED
    span = 1.4910 + 0.6213
    assert np.abs(np.diff(rows[:, [6, 13]] * span, axis=0)).max() <= SPEED
    assert (rows >= SPEC.lower).all()
    assert (rows <= SPEC.upper).all()
    assert len(np.unique(chunks[-1], axis=0)) == 1
    assert len(np.unique(chunks[-2], axis=0)) == 1  # at most 7 chunks: 14 s


@pytest.mark.parametrize("braked_at", [10, 30, 45])
def test_after_a_brake_it_goes_on_from_where_the_arms_stand(query: Query, braked_at: int) -> None:
    """A stalled machine once braked a chunk, and the next one began at that chunk's end."""
    policy = Demonstrator(jitter=0.0)
    first = policy.decide(query).positions
    after = policy.decide(replace(at(query, first[braked_at]), index=1)).positions
    undisturbed = Demonstrator(jitter=0.0)
    undisturbed.decide(query)
    second = undisturbed.decide(replace(at(query, first[-1]), index=1)).positions
    plan = np.vstack([first, second])
    resumed = int(np.flatnonzero((plan == after[0]).all(axis=1))[0])
    assert abs(resumed - braked_at - 1) <= 3
    np.testing.assert_array_equal(after[:40], plan[resumed : resumed + 40])


def test_the_seed_varies_the_demonstration_and_repeats_it(query: Query) -> None:
    one, again = (Demonstrator().decide(query).positions for _ in range(2))
    np.testing.assert_array_equal(one, again)
    other = Demonstrator().decide(replace(query, seed=4)).positions
    assert not np.array_equal(one, other)
    still = [Demonstrator(jitter=0.0).decide(replace(query, seed=s)).positions for s in (3, 4)]
    np.testing.assert_array_equal(still[0], still[1])


def test_gripper_constants_are_the_rig_s(query: Query) -> None:
    other = replace(SPEC.arms.left.gripper, command_closed=0.0, command_open=1.0)
    angles = Demonstrator(gripper=other).decide(query).positions[:, 13]
    default = Demonstrator().decide(query).positions[:, 13]
    np.testing.assert_allclose(angles, -0.6213 + default * (1.4910 + 0.6213), atol=1e-12)


@pytest.mark.parametrize("size", [(128, 128), (240, 320), (224, 224), (480, 640)])
@pytest.mark.parametrize("task", ["transfer_cube", "insertion"])
def test_finds_objects_in_images_of_any_size(task: str, size: tuple[int, int]) -> None:
    rig = settled(task, 6)
    pixel = 2 * 0.8 * np.tan(np.radians(39)) / size[0]
    with Renderer(task, *size) as renderer:
        image = renderer.render(rig.snapshot())["primary"]
    objects = rig.snapshot().qpos[16:].reshape(-1, 7)
    for thing, place in zip(SCRIPTS[task][0], objects, strict=True):
        assert PrimarySight().locate(image, thing) == pytest.approx(place[:2], abs=0.6 * pixel)


def test_a_hidden_object_is_named_with_what_was_seen(query: Query) -> None:
    images = {**query.observation.images, "primary": np.zeros((128, 128, 3), np.uint8)}
    dark = replace(query, observation=replace(query.observation, images=images))
    with pytest.raises(ObservationError, match=r"128x128\) shows 0 red pixels where the cube"):
        Demonstrator().decide(dark)


def test_what_it_cannot_answer_is_refused(query: Query) -> None:
    with pytest.raises(ObservationError, match="no plan for query 2; start the run anew"):
        Demonstrator().decide(replace(query, index=2))
    with pytest.raises(ObservationError, match="no script for task 'insertoin'; did you mean"):
        Demonstrator().decide(replace(query, task="insertoin"))
    blind = replace(query.observation, images={})
    with pytest.raises(ObservationError, match="needs the primary image; the observation has"):
        Demonstrator().decide(replace(query, observation=blind))
    lost = replace(query.observation, state=np.full(14, np.nan))
    with pytest.raises(ObservationError, match="14 finite state values"):
        Demonstrator().decide(replace(query, observation=lost))
