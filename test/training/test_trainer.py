"""Whole runs: the same curve however many processes, killed or not; a bad start is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.forked import begin_command, run_command
from helpers.waiting import family, is_on_loopback, sockets, wait_for
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from cosmos_policy_ros.core.errors import TrainingError
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.checkpoint import load_checkpoint
from cosmos_policy_ros.training import trainer as trainer_module
from cosmos_policy_ros.training.config import TrainingConfig
from cosmos_policy_ros.training.parallel import DistContext, joined
from cosmos_policy_ros.training.reports import read_steps
from cosmos_policy_ros.training.start import initialise
from cosmos_policy_ros.training.trainer import Trainer

from .conftest import START, learn_success, settings

Config = Callable[..., TrainingConfig]
STEPS = "training/steps.jsonl"


def train(config: TrainingConfig, output: Path) -> Trainer:
    output.mkdir(exist_ok=True)
    with joined("cpu") as world:
        trainer = Trainer(config, output, world)
        trainer.run()
    return trainer


def losses(output: Path) -> list[float]:
    return [line["loss"] for line in read_steps(output / STEPS)]


def curve(output: Path) -> list[dict[str, Any]]:
    """Return the lines of a run without what depends on the clock."""
    lines = read_steps(output / STEPS)
    return [{k: v for k, v in line.items() if k != "samples_per_second"} for line in lines]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, episodes: Path) -> Path:
    """An undisturbed run of one process."""
    return command(
        tmp_path_factory.mktemp("plain") / "out", episodes, run={"validation_windows": 1}
    )


def write_settings(output: Path, episodes: Path, **sections: Any) -> Path:
    path = output.with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings(episodes, **sections)))
    return path


def words(output: Path, episodes: Path, *more: str, **sections: Any) -> list[str]:
    """Return what follows ``cosmos``."""
    path = write_settings(output, episodes, **sections)
    return ["train", str(path), "--output", str(output), *more]


def command(output: Path, episodes: Path, *more: str, processes: int = 1, **sections: Any) -> Path:
    """Train as ``cosmos train`` does, or ``torchrun`` with it; return the output folder."""
    code, printed = run_command(words(output, episodes, *more, **sections), processes=processes)
    assert code == 0, printed[-3000:]
    return output


def same(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]], rtol: float) -> None:
    assert [line["step"] for line in one] == [line["step"] for line in other]
    for left, right in zip(one, other, strict=True):
        assert left["l1"].keys() == right["l1"].keys()
        for name in ("loss", "gradient_norm"):
            assert left[name] == pytest.approx(right[name], rel=rtol)
        for role, errors in left["l1"].items():
            assert errors == pytest.approx(right["l1"][role], rel=rtol)


# ---------------------------------------------------------------- what comes out


def test_what_comes_out_is_a_checkpoint_with_a_card(plain: Path, episodes: Path) -> None:
    checkpoint = load_checkpoint(plain)
    assert not checkpoint.random_weights
    start = load_checkpoint(episodes / START)
    moved = [
        name
        for (name, now), before in zip(
            checkpoint.transformer.named_parameters(), start.transformer.parameters(), strict=True
        )
        if not torch.equal(now, before)
    ]
    assert len(moved) == len(list(start.transformer.parameters()))
    for now, before in zip(
        checkpoint.tokenizer.parameters(), start.tokenizer.parameters(), strict=True
    ):
        assert torch.equal(now, before)
    told = json.loads((plain / files.PROVENANCE).read_text())
    assert told["steps"] == told["planned_steps"] == 3
    assert told["samples"] == 12
    assert told["digest"] == checkpoint.digest
    assert told["mixture"] == {"policy": 0.5, "world_model": 0.25, "value": 0.25}
    card = (plain / "README.md").read_text()
    assert checkpoint.digest in card
    assert "| policy |" in card
    assert "| mixture | policy 0.5, world_model 0.25, value 0.25 |" in card
    assert "| first loss | from scratch, random weights |" in card
    assert set(told["held_out"]) == {"action_l1", "pose_l1"}


def test_statistics_are_those_of_the_demonstrations(plain: Path) -> None:
    statistics = load_checkpoint(plain).statistics
    # Three waves of 60 rows, a radian apart: the left shoulder's phase is 0.2 further on.
    rows = np.arange(60)[:, None] / 25 + np.arange(3) + 0.2
    wanted = np.sin(rows) / 4 + 0.5
    assert statistics.actions.low[1] == pytest.approx(wanted.min(), abs=1e-9)
    assert statistics.actions.high[1] == pytest.approx(wanted.max(), abs=1e-9)


def test_a_line_per_step_tells_what_happened(plain: Path) -> None:
    lines = read_steps(plain / STEPS)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert set(line["l1"]) == {"policy", "world_model", "value"}
        assert set(line["l1"]["policy"]) == {
            "action",
            "future_proprio",
            "future_left_wrist",
            "future_right_wrist",
            "future_primary",
            "value",
        }
        assert "action" not in line["l1"]["world_model"]
        assert set(line["l1"]["value"]) == {"value"}
        assert line["gradient_norm"] > 0
    assert list((plain / "training" / "tensorboard").glob("events.*"))
    assert sorted(p.name for p in (plain / "training" / "judged").iterdir()) == [
        "step_000000002.png",
        "step_000000003.png",
    ]


# ---------------------------------------------------------------- the same curve, whatever happens


def test_two_processes_learn_what_one_learns(plain: Path, tmp_path: Path, episodes: Path) -> None:
    """With a copy of the network each, and an end in between; with Muon they share one."""
    both, run = tmp_path / "both", {"shard_size": 1, "validation_windows": 1}
    command(both, episodes, processes=2, run={**run, "steps": 2})
    command(both, episodes, "--resume", processes=2, run=run)
    same(curve(both), curve(plain), rtol=1e-3)
    one, other = (load_file(path / files.TRANSFORMER) for path in (plain, both))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, atol=2e-4, rtol=0)


def test_processes_of_one_machine_listen_on_loopback_only(tmp_path: Path, episodes: Path) -> None:
    """``torchrun --standalone`` listens on all interfaces."""
    output = tmp_path / "out"
    run = {"steps": 10_000, "save_every": 9_999}
    process = begin_command(words(output, episodes, "--processes", "2", run=run), tmp_path / "log")
    assert process.pid is not None
    try:

        def it_trains() -> bool:
            assert process.is_alive()
            return (output / STEPS).is_file() and bool(read_steps(output / STEPS))

        wait_for(it_trains, "a step")
        found = [socket for pid in family(process.pid) for socket in sockets(pid)]
    finally:
        os.kill(process.pid, signal.SIGINT)
        process.join()
    assert len(found) >= 2  # the two processes hear each other
    assert all(map(is_on_loopback, found)), found
    assert process.exitcode == 128 + signal.SIGINT


def test_micro_batches_learn_what_a_batch_learns(
    plain: Path, tmp_path: Path, config: Config
) -> None:
    train(config(run={"micro_batch": 2}), tmp_path / "out")
    same(curve(tmp_path / "out"), curve(plain), rtol=1e-3)


def test_recomputed_activations_change_nothing(plain: Path, tmp_path: Path, config: Config) -> None:
    train(config(run={"activation_checkpointing": True}), tmp_path / "out")
    assert curve(tmp_path / "out") == curve(plain)


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(
    tmp_path: Path, episodes: Path, config: Config
) -> None:
    output = tmp_path / "killed"
    process = begin_command(words(output, episodes, run={"steps": 400}), tmp_path / "log")

    def beyond_a_resume_point() -> bool:
        assert process.is_alive()
        points = list((output / "training/resume").glob("step_*[0-9]"))
        return bool(points) and len(read_steps(output / STEPS)) >= 3

    wait_for(beyond_a_resume_point, "a resume point, and a step behind it")
    process.kill()
    process.join()
    steps = len(read_steps(output / STEPS)) + 2
    command(output, episodes, "--resume", run={"steps": steps})
    train(config(run={"steps": steps, "save_every": 400}), tmp_path / "whole")
    assert curve(output) == curve(tmp_path / "whole")


def test_a_run_goes_on_from_its_newest_whole_point(tmp_path: Path, config: Config) -> None:
    """With all that moves the weights: AdamW, Muon and the moving average."""
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    optimiser = {"matrix_rate": 0.01, "average": 0.9}
    train(config(run={"steps": 4, "save_every": 3}, optimiser=optimiser), whole)
    train(config(run={"steps": 2, "save_every": 3}, optimiser=optimiser), halves)
    resume = halves / "training" / "resume"
    (resume / "step_000000003.partial").mkdir()  # a save that was killed
    second = train(config(run={"steps": 4, "save_every": 3}, optimiser=optimiser), halves)
    assert second.first_step == 2
    assert curve(halves) == curve(whole)
    one, other = (load_file(path / files.TRANSFORMER) for path in (whole, halves))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert sorted(path.name for path in resume.iterdir()) == ["step_000000003", "step_000000004"]
    # What is deployed is the average, not the last step's weights.
    assert second.average is not None
    name = "final_layer.linear.weight"
    deployed = load_checkpoint(halves).transformer.state_dict()[name]
    assert torch.equal(deployed, second.average.tensors[name])
    assert not torch.equal(deployed, second.optimisers.parameters[name])


def test_muon_and_the_average_are_the_same_in_two_processes(tmp_path: Path, episodes: Path) -> None:
    optimiser = {"matrix_rate": 0.01, "average": 0.9}
    one, both = tmp_path / "one", tmp_path / "both"
    command(one, episodes, optimiser=optimiser)
    command(both, episodes, processes=2, optimiser=optimiser, run={"steps": 2})
    command(both, episodes, "--resume", processes=2, optimiser=optimiser)
    same(curve(both), curve(one), rtol=1e-3)
    alone, shared = (load_file(path / files.TRANSFORMER) for path in (one, both))
    for name, tensor in alone.items():
        torch.testing.assert_close(shared[name], tensor, atol=2e-4, rtol=0)


def test_muon_moves_whole_weights_where_the_arithmetic_is_bfloat16(
    tmp_path: Path, config: Config, episodes: Path
) -> None:
    """It is given float32 weights and gradients then; one step goes where it goes in float32."""
    name, moved = "blocks.0.mlp.layer1.weight", []
    start = load_checkpoint(episodes / START).transformer.state_dict()[name]
    for precision in ("float32", "bfloat16"):
        run = {"precision": precision, "steps": 1, "micro_batch": 2, "validation_windows": 0}
        output = tmp_path / precision
        trained = train(config(run=run, optimiser={"matrix_rate": 0.01}), output)
        weight = trained.optimisers.parameters[name]
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
        assert whole.dtype == torch.float32
        moved.append((whole.detach() - start).flatten())
    assert torch.cosine_similarity(*moved, dim=0) > 0.9


def test_a_run_that_goes_on_with_other_data_says_so(
    tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    train(config(run={"steps": 1, "validation_windows": 0}), output)
    train(config(run={"steps": 2, "validation_windows": 0}), output)
    assert "data has changed" not in capsys.readouterr().out
    fewer = {"rollouts": []}
    train(config(run={"steps": 3, "validation_windows": 0}, data=fewer), output)
    assert "the data has changed since" in capsys.readouterr().out


def test_ctrl_c_ends_after_a_whole_step_and_saves_it(tmp_path: Path, episodes: Path) -> None:
    output, log = tmp_path / "stopped", tmp_path / "log"
    endless = {"steps": 10_000, "save_every": 9_999}
    process = begin_command(words(output, episodes, run=endless), log)
    wait_for(lambda: (output / STEPS).is_file() and curve(output), "the first step")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 0
    assert "Traceback" not in log.read_text()
    steps = curve(output)[-1]["step"]
    assert (output / f"training/resume/step_{steps:09d}").is_dir()
    assert json.loads((output / files.PROVENANCE).read_text())["steps"] == steps


# ---------------------------------------------------------------- starts


def test_a_start_with_weights_is_compared_with_a_random_network(
    tmp_path: Path, config: Config, trained: Path
) -> None:
    start = {"checkpoint": str(trained), "scratch": False, "statistics": "checkpoint"}
    planning: dict[str, Any] = {"policy": 0.3, "world_model": 0.35, "value": 0.35}
    planning |= {"demonstrations_as_rollouts": False}
    trainer = train(
        config(start=start, run={"steps": 1}, mixture=planning, objective={"value": "value_s"}),
        tmp_path / "out",
    )
    assert trainer.start_loss is not None
    started, random = trainer.start_loss
    assert started < 0.8 * random
    assert losses(tmp_path / "out")[0] < 0.8 * random
    for name in (files.STATISTICS, files.TEXT, files.VAE):
        assert (tmp_path / "out" / name).read_bytes() == (trained / name).read_bytes()


def test_a_silent_start_from_scratch_is_impossible(
    tmp_path: Path, config: Config, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The released trainer began with random weights when its weights were a file it ignored."""
    for name in ("none", "shuffled", "silent"):
        (tmp_path / name).mkdir()
    with pytest.raises(TrainingError, match=r"holds no weights.*start.scratch: true"):
        train(config(start={"scratch": False}), tmp_path / "none")
    load = trainer_module.load_start

    def forgetful(*args: Any) -> Any:
        checkpoint = load(*args)
        for parameter in checkpoint.transformer.parameters():
            if parameter.ndim > 1:
                torch.nn.init.kaiming_uniform_(parameter.data, a=5**0.5)
        return checkpoint

    def silent(*args: Any) -> Any:
        checkpoint = load(*args)
        initialise(checkpoint.transformer, 0)
        return checkpoint

    start = {"checkpoint": str(trained), "scratch": False}
    for name, wrong in (("shuffled", forgetful), ("silent", silent)):
        monkeypatch.setattr(trainer_module, "load_start", wrong)
        with pytest.raises(
            TrainingError, match=r"first loss is .*a random network's .*right checkpoint"
        ):
            train(config(start=start), tmp_path / name)
    meant = config(start={**start, "check": False}, run={"steps": 1})
    assert train(meant, tmp_path / "silent").start_loss is not None


@pytest.fixture(scope="module")
def strange(trained: Path, episodes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with weights of which nothing holds but what a success is worth."""
    folder = tmp_path_factory.mktemp("checkpoints") / "strange"
    shutil.copytree(trained, folder)
    checkpoint = load_checkpoint(episodes / START)
    learn_success(checkpoint, others=1.5)
    save_file(checkpoint.transformer.state_dict(), folder / files.TRANSFORMER)
    return folder


@pytest.mark.parametrize("statistics", ["checkpoint", "demonstrations"])
def test_trained_weights_begin_on_data_that_they_are_wrong_about(
    tmp_path: Path,
    config: Config,
    strange: Path,
    statistics: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They were taken for wrong weights, and there was no way on but from scratch."""
    start = {"checkpoint": str(strange), "scratch": False, "statistics": statistics}
    data = {"rollouts": [], "held_out": 0.0}
    trainer = train(config(start=start, data=data, run={"steps": 1}), tmp_path / "out")
    assert trainer.start_loss is not None
    started, random = trainer.start_loss
    assert started > 0.8 * random, "the whole loss does not tell"
    assert "the weights are trained, but on other data" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_adapters_learn_beside_frozen_weights_and_are_merged(
    tmp_path: Path, config: Config, trained: Path, precision: str
) -> None:
    start = {"checkpoint": str(trained), "scratch": False, "statistics": "checkpoint"}
    lora = {"rank": 4, "targets": ["q_proj", "layer2"]}
    run = {"precision": precision, "steps": 2, "micro_batch": 2}
    trainer = train(config(start=start, lora=lora, run=run), tmp_path / "out")
    names = {
        name.split(".")[-1] for name, p in trainer.network.named_parameters() if p.requires_grad
    }
    assert names == {"lora_down", "lora_up"}
    before, after = (load_file(path / files.TRANSFORMER) for path in (trained, tmp_path / "out"))
    assert before.keys() == after.keys()
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"q_proj", "layer2"}
    # At first the adapters add nothing: the loss is that of the network without them.
    train(config(start=start, run={**run, "steps": 1}), tmp_path / "whole")
    assert losses(tmp_path / "out")[0] == pytest.approx(losses(tmp_path / "whole")[0], rel=1e-6)


def test_bfloat16_arithmetic_keeps_float32_weights(
    plain: Path, tmp_path: Path, config: Config
) -> None:
    run = {"precision": "bfloat16", "steps": 2, "micro_batch": 2}
    trainer = train(config(run=run), tmp_path / "half")
    assert {p.dtype for p in trainer.optimisers.parameters.values()} == {torch.float32}
    assert {m.dtype for m in trainer.optimisers.moments().values()} == {torch.float32}
    half, single = losses(tmp_path / "half"), losses(plain)[:2]
    assert half == pytest.approx(single, rel=0.05)
    assert half != single


# ---------------------------------------------------------------- what goes wrong


def test_a_loss_that_is_not_finite_ends_the_run_with_advice(tmp_path: Path, config: Config) -> None:
    optimiser = {"learning_rate": 1e30, "warmup_steps": 0, "clip_norm": 1e30}
    with pytest.raises(
        TrainingError, match=r"the loss is (nan|inf).*lower optimiser.learning_rate"
    ):
        train(config(optimiser=optimiser, run={"steps": 10}), tmp_path / "out")


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path: Path, config: Config) -> None:
    world = DistContext(0, 3, torch.device("cpu"), None, None)
    with pytest.raises(TrainingError, match="4 samples cannot be shared by 3 processes"):
        Trainer(config(), tmp_path, world)


@pytest.mark.parametrize(
    ("limit", "named"), [(700_000, files.TRANSFORMER), (2_000_000, "step_000000002.partial")]
)
def test_a_full_disk_is_told_without_a_traceback(
    tmp_path: Path, episodes: Path, limit: int, named: str
) -> None:
    """The kernel refuses a longer file, as a full disk would: of weights, or of a resume point."""
    code, printed = run_command(words(tmp_path / "out", episodes), file_limit=limit)
    assert code == 1
    assert f"{named}: cannot be written" in printed
    assert "Traceback" not in printed
