"""What a sample and its latents hold is what the policy would see, and what was done then."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.forked import CONTEXT
from torch.utils.data import DataLoader

from cosmos_policy_ros.core.errors import ObservationError, TrainingError
from cosmos_policy_ros.dataset.windows import EpisodeWindows
from cosmos_policy_ros.model.checkpoint import Checkpoint, load_checkpoint
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.training import samples, targets
from cosmos_policy_ros.training.batch import WindowRef, collate
from cosmos_policy_ros.training.config import TrainingConfig
from cosmos_policy_ros.training.dataset_index import Mixture, index_episodes
from cosmos_policy_ros.training.samples import BatchSlot, SampleMaker, Shard, load
from cosmos_policy_ros.training.targets import TargetMaker

from .conftest import START

Config = Callable[..., TrainingConfig]


@pytest.fixture(scope="module")
def checkpoint(episodes: Path) -> Checkpoint:
    return load_checkpoint(episodes / START)


def maker_of(config: TrainingConfig, checkpoint: Checkpoint) -> SampleMaker:
    dataset_index = index_episodes(config.data, checkpoint.config, checkpoint.text)
    mixture = Mixture(dataset_index, config.mixture, config.run.seed)
    return SampleMaker(
        dataset_index,
        mixture,
        config.run.batch,
        checkpoint.config,
        checkpoint.statistics,
        config.data,
        config.objective,
    )


@pytest.fixture
def maker(config: Config, checkpoint: Checkpoint) -> SampleMaker:
    return maker_of(config(), checkpoint)


def test_it_holds_what_the_policy_would_see_and_what_the_arms_were_told(
    maker: SampleMaker, checkpoint: Checkpoint
) -> None:
    """Live = offline, down to the numbers that the network is given."""
    pick = WindowRef("policy", 1, 5, 0)
    sample = maker.make(pick)
    windows = maker.dataset_index.entries[1].windows
    times = windows.steps.times_ns
    policy = CosmosPolicy(checkpoint)
    scene = policy.encode_observation(sample.prompt, windows.observe(int(times[5])))
    batch = collate([sample, maker.make(WindowRef("value", 0, 50, 1))])
    clean = TargetMaker(checkpoint, torch.device("cpu"))(batch)
    known = 1 + len(checkpoint.layout.state)
    torch.testing.assert_close(clean[:1, :, :known], scene.clean[:, :, :known], atol=2e-5, rtol=0)
    (chunk,) = policy.chunks(clean[:1])
    np.testing.assert_allclose(chunk, windows.steps.actions[5:55], atol=1e-6)
    later = policy.encode_observation(sample.prompt, windows.observe(int(times[55])))
    np.testing.assert_array_equal(
        sample.images[3:], np.stack([later.images[c] for c in checkpoint.layout.cameras])
    )
    assert policy.values(clean)[0] == pytest.approx(0.998 ** (59 - 55), abs=1e-6)


def test_latents_are_those_of_the_whole_sequence(
    maker: SampleMaker, checkpoint: Checkpoint
) -> None:
    """Training may not take the shortcut of a query: later frames see the images before them."""
    sample = maker.make(WindowRef("policy", 0, 3, 0))
    clean = TargetMaker(checkpoint, torch.device("cpu"))(collate([sample]))
    size = checkpoint.config.image_size
    sequence = np.zeros((41, size, size, 3), np.uint8)
    for camera in range(3):
        sequence[5 + 4 * camera : 9 + 4 * camera] = sample.images[camera]
        sequence[25 + 4 * camera : 29 + 4 * camera] = sample.images[3 + camera]
    video = torch.from_numpy(sequence).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        whole = checkpoint.tokenizer.encode(video)
    cameras = [0, 2, 3, 4, 7, 8, 9]
    torch.testing.assert_close(clean[:, :, cameras], whole[:, :, cameras], atol=2e-5, rtol=0)


def test_kept_latents_and_images_change_nothing(config: Config, checkpoint: Checkpoint) -> None:
    cached = maker_of(config(data={"cache_gb": 0.001, "latent_cache_gb": 0.001}), checkpoint)
    plain = maker_of(config(), checkpoint)
    kept = TargetMaker(checkpoint, torch.device("cpu"), 0.001)
    forgetful = TargetMaker(checkpoint, torch.device("cpu"))
    picks = [WindowRef("policy", 0, start, 7) for start in (0, 1, 0, 50)]
    for _ in range(2):
        found = collate([cached.make(pick) for pick in picks])
        expected = collate([plain.make(pick) for pick in picks])
        assert torch.equal(found.images, expected.images)
        torch.testing.assert_close(kept(found), forgetful(expected), atol=2e-5, rtol=0)


def test_an_autoencoder_of_images_encodes_each_moment_once(
    config: Config, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its weights the short way and the long one give the same latents."""
    targets.inflate(checkpoint.tokenizer.vae)
    checkpoint.tokenizer.forget()
    maker = maker_of(config(), checkpoint)
    whole = TargetMaker(checkpoint, torch.device("cpu"))
    each = TargetMaker(checkpoint, torch.device("cpu"), 0.001)
    picks = [WindowRef("policy", 0, start, 7) for start in (0, 3, 0, 8)]
    batch = collate([maker.make(pick) for pick in picks])
    torch.testing.assert_close(each(batch), whole(batch), atol=2e-5, rtol=0)
    encoded: list[int] = []
    encode = targets.encode_images

    def count(vae: object, seen: torch.Tensor, patch: int) -> torch.Tensor:
        encoded.append(len(seen))
        return encode(vae, seen, patch)  # type: ignore[arg-type]

    monkeypatch.setattr(targets, "encode_images", count)
    again = collate([maker.make(WindowRef("value", 0, start, 1)) for start in (0, 8, 9)])
    torch.testing.assert_close(each(again), whole(again), atol=2e-5, rtol=0)
    assert sum(encoded) == 2 * 3  # step 9's cameras, and those of its future


def test_the_image_cache_keeps_its_limit(config: Config, checkpoint: Checkpoint) -> None:
    maker = maker_of(config(data={"cache_gb": 100_000 / 1e9}), checkpoint)
    for start in range(20):
        maker.make(WindowRef("policy", 0, start, 0))
    assert 0 < maker._cached_bytes <= 100_000
    assert maker._cached_bytes == sum(look.images.nbytes for look in maker._cache.values())


def test_an_augmented_sample_is_the_same_whenever_it_is_made(
    config: Config, checkpoint: Checkpoint
) -> None:
    maker = maker_of(config(data={"augmentation": "strong"}), checkpoint)
    one, again = (
        maker.make(WindowRef("policy", 0, 3, 11)),
        maker.make(WindowRef("policy", 0, 3, 11)),
    )
    np.testing.assert_array_equal(one.images, again.images)
    assert (one.images != maker.make(WindowRef("policy", 0, 3, 12)).images).any()


def test_a_success_is_learned_by_other_prompts_too_and_a_failure_by_its_own(
    config: Config, checkpoint: Checkpoint
) -> None:
    own = "transfer the red cube"
    others = ["hand over a cube", "hand over the red cube", own, "hand over a cube"]
    maker = maker_of(config(data={"prompt_augmentation": {own: others}}), checkpoint)
    by_pool: dict[str, Counter[str]] = defaultdict(Counter)
    for index, entry in enumerate(maker.dataset_index.entries):
        for seed in range(40):
            sample = maker.make(WindowRef("policy", index, 5, seed))
            assert sample.prompt == maker.make(sample.window).prompt
            by_pool[entry.pool][sample.prompt] += 1
    assert set(by_pool["demonstration"]) == set(by_pool["success"]) == {own, *others}
    assert min(by_pool["demonstration"].values()) > 10  # of 120, 40 of each are expected
    assert set(by_pool["failure"]) == {own}


def test_a_prompt_that_the_checkpoint_does_not_know_is_refused(
    config: Config, checkpoint: Checkpoint
) -> None:
    own = "transfer the red cube"
    with pytest.raises(TrainingError, match="prompt_augmentation: prompt 'hand it over' has no"):
        maker_of(config(data={"prompt_augmentation": {own: ["hand it over"]}}), checkpoint)


def test_an_unreadable_window_is_replaced_in_its_role_and_told(
    maker: SampleMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = BatchSlot(2, 1)
    first = maker.mixture.draw(*place, 4)
    look, broken = EpisodeWindows.observe, maker.dataset_index.entries[first.entry].windows

    def observe(windows: EpisodeWindows, stamp_ns: int) -> object:
        if windows is broken and stamp_ns == windows.steps.times_ns[first.start]:
            raise ObservationError("the camera is frozen")
        return look(windows, stamp_ns)

    monkeypatch.setattr(EpisodeWindows, "observe", observe)
    sample = maker[place]
    assert sample.window.role == first.role
    assert (sample.window.entry, sample.window.start) != (first.entry, first.start)
    (reason,) = sample.replaced
    assert reason.endswith(f"step {first.start}: the camera is frozen")


def test_nothing_but_unreadable_windows_ends_the_run(
    maker: SampleMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def observe(*_: object) -> None:
        raise ObservationError("the camera is frozen")

    monkeypatch.setattr(EpisodeWindows, "observe", observe)
    with pytest.raises(TrainingError, match=r"20 windows in a row cannot be read.*frozen"):
        maker[BatchSlot(0, 0)]


def test_loading_processes_give_the_same_samples(
    config: Config, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are spawned; forked, they need not import torch first."""

    def loader(*given: Any, **options: Any) -> Any:
        assert options["multiprocessing_context"] in (None, "spawn")
        context = CONTEXT if options["num_workers"] else None
        return DataLoader(*given, **options | {"multiprocessing_context": context})

    monkeypatch.setattr(samples, "DataLoader", loader)
    share = Shard(4, 2, 0, 1, 0, 2)
    alone, helped = (
        list(load(maker_of(config(data={"workers": workers}), checkpoint), share))
        for workers in (0, 1)
    )
    assert len(alone) == len(helped) == 4
    for one, other in zip(alone, helped, strict=True):
        assert one.windows == other.windows
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.actions, other.actions)


@pytest.mark.parametrize(("world", "micro_batch"), [(1, 12), (2, 4), (3, 3), (4, 1)])
def test_processes_share_a_batch_without_rest(world: int, micro_batch: int) -> None:
    shares = [Shard(12, micro_batch, rank, world, 3, 5) for rank in range(world)]
    places = [p for share in shares for group in share.slots(4) for p in group]
    assert places == [BatchSlot(4, place) for place in range(12)]
    assert [p.step for group in shares[0] for p in group] == [3] * (12 // world) + [4] * (
        12 // world
    )


def test_scores_become_returns(config: Config, checkpoint: Checkpoint) -> None:
    values = {}
    for numerics in ("released", "paper"):
        maker = maker_of(config(objective={"numerics": numerics}), checkpoint)
        scores = {source.score: index for index, source in enumerate(maker.dataset_index.entries)}
        pick = WindowRef("value", scores[0.4], 59, 0)
        values[numerics] = maker.make(pick).value
        assert maker.make(pick._replace(entry=scores[0.0])).value == -1
    assert values == {"released": 1.0, "paper": pytest.approx(-0.2)}
    entries = maker.dataset_index.entries
    blamed = replace(entries[scores[0.4]], worthless=np.arange(60) >= 50)
    maker.dataset_index = replace(
        maker.dataset_index,
        entries=tuple(blamed if e is entries[scores[0.4]] else e for e in entries),
    )
    assert [maker.make(pick._replace(start=start)).value for start in (59, 40)] == [-1, -1]
