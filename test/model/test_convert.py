"""Pins that published weights arrive unchanged, and that a wrong file leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from helpers.published_checkpoint import (
    WEIGHTS,
    config_at,
    networks,
    prompts,
    publish,
    with_extra_state,
)
from safetensors.torch import save_file

from cosmos_policy_ros.cli import cosmos
from cosmos_policy_ros.core.errors import CheckpointError
from cosmos_policy_ros.model import convert as module
from cosmos_policy_ros.model.checkpoint import load_checkpoint
from cosmos_policy_ros.model.convert import Parts, convert, find_parts, sha256_of
from cosmos_policy_ros.model.weight_names import released_name
from cosmos_policy_ros.model.weights import load_prompts, read_weights


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, tiny_path: Path) -> Path:
    folder = tmp_path_factory.mktemp("original") / "download"
    return publish(folder, tiny_path / "dataset_statistics.json")


@pytest.fixture
def published(original: Path, tmp_path: Path) -> Path:
    config_at(tmp_path)
    return Path(shutil.copytree(original, tmp_path / "download"))


def run(source: Path, target: Path, force: bool = False, **given: Path) -> list[str]:
    """Convert with the small config; returns what was reported."""
    told: list[str] = []
    config = given.pop("config", source.parent / "small.yaml")
    parts = find_parts(str(source), Parts(config=config, **given), no_network)
    convert(parts, target, "a test", force, told.append)
    return told


def no_network(repository: str, patterns: Any) -> Path:
    raise AssertionError(f"asked for {repository}")


def ours(net: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the network's tensors under our names, without the trainer's counters."""
    counters = ("net.accum_", "net.pos_embedder.seq")
    return {n.removeprefix("net."): t for n, t in net.items() if not n.startswith(counters)}


def assert_faithful(target: Path) -> None:
    """Compare a converted folder with what was published, number by number."""
    checkpoint = load_checkpoint(target)
    net, vae = networks()
    assert not checkpoint.random_weights
    assert checkpoint.transformer.dtype == checkpoint.tokenizer.dtype == torch.bfloat16
    vae_names = {released_name(name, 2): name for name in checkpoint.tokenizer.vae.state_dict()}
    pairs: tuple[tuple[Any, dict[str, torch.Tensor]], ...] = (
        (checkpoint.transformer, ours(net)),
        (checkpoint.tokenizer.vae, {vae_names[name]: tensor for name, tensor in vae.items()}),
    )
    for network, expected in pairs:
        state = network.state_dict()
        assert state.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(state[name], tensor.bfloat16()), name
    for prompt, embedding in prompts().items():
        assert torch.equal(checkpoint.text.embedding(prompt), embedding[0])


def test_published_folder(published: Path, tmp_path: Path) -> None:
    target = tmp_path / "made" / "here"
    told = run(published, target)
    assert_faithful(target)
    assert [line.split()[0] for line in told] == [f"[{i}/6]" for i in range(1, 7)]
    assert {p.name for p in target.iterdir()} == {
        "config.yaml",
        "dataset_statistics.json",
        "text.safetensors",
        "transformer.safetensors",
        "vae.safetensors",
        "provenance.json",
    }
    plain = tmp_path / "plain"
    plain.touch()
    for file in target.iterdir():
        assert file.stat().st_mode == plain.stat().st_mode, f"{file.name} is not for everyone"
    history = json.loads((target / "provenance.json").read_text())
    assert history["source"] == "a test"
    assert history["digest_when_converted"] == load_checkpoint(target).digest
    digest = hashlib.sha256((published / WEIGHTS).read_bytes()).hexdigest()
    assert history["files"]["transformer.safetensors"] == {"from": WEIGHTS, "sha256": digest}
    assert str(tmp_path) not in json.dumps(history)


def test_distributed_checkpoint(published: Path, tmp_path: Path) -> None:
    """As a fine-tuning leaves it: float32 master weights in ``model/``."""
    saved = {name: t.float() for name, t in networks()[0].items()}
    state = {k: v for k, v in with_extra_state(saved).items() if v is not None}
    dcp.save(state, checkpoint_id=published / "model", no_dist=True)
    (published / WEIGHTS).unlink()
    run(published, tmp_path / "target")
    assert_faithful(tmp_path / "target")
    given = Parts(config=tmp_path / "small.yaml")
    found = find_parts(str(published / "model"), given, no_network)
    assert found == find_parts(str(published), given, no_network)

    (shard,) = (published / "model").glob("*.distcp")
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"model: cannot be read as a distributed checkpoint"):
        read_weights(published / "model")
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"model: cannot be read as a distributed checkpoint"):
        read_weights(published / "model")


def test_what_nothing_reads_is_left_out_and_told(published: Path, tmp_path: Path) -> None:
    torch.save({**networks()[0], "logvar.weight": torch.ones(1)}, published / WEIGHTS)
    file = published / "aloha_dataset_statistics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"actions_q99": [1.0]}))
    told = run(published, tmp_path / "target")
    assert any("left out 1 tensors outside the network: logvar.weight" in line for line in told)
    assert "      the statistics have entries that nothing reads: actions_q99" in told
    assert_faithful(tmp_path / "target")


@pytest.mark.parametrize("name", ["model", "state_dict"])
def test_weights_that_a_trainer_wrapped(tmp_path: Path, name: str) -> None:
    net, _ = networks()
    around = {"iteration": 7, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}}
    torch.save({name: with_extra_state(net), **around}, tmp_path / WEIGHTS)
    found = read_weights(tmp_path / WEIGHTS)
    assert found.keys() == net.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in net.items())


def averaged(net: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights beside a moving average of them, which is three times as large."""
    return net | {name.replace("net.", "net_ema.", 1): 3 * t for name, t in net.items()}


def test_the_moving_average_can_be_chosen(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net, _ = networks()
    torch.save(averaged(net), published / WEIGHTS)
    told = run(published, tmp_path / "plain")
    assert_faithful(tmp_path / "plain")
    assert any("left out" in line and "net_ema.blocks.{0-1}.mlp" in line for line in told)
    assert any("--ema takes the weights' moving average" in line for line in told)
    words = [str(published), "--config", str(tmp_path / "small.yaml"), "--ema"]
    assert cosmos.main(["convert", *words, str(tmp_path / "averaged")]) == 0
    found = load_checkpoint(tmp_path / "averaged").transformer.state_dict()
    for name, tensor in ours(net).items():
        assert torch.equal(found[name], 3 * tensor), name
    torch.save(net, published / WEIGHTS)
    capsys.readouterr()
    assert cosmos.main(["convert", *words, str(tmp_path / "none")]) == 1
    assert "holds no moving average" in capsys.readouterr().err


def shard(folder: Path, net: dict[str, torch.Tensor]) -> Path:
    """Write the weights as two safetensors with an index; return it."""
    folder.mkdir()
    names = sorted(net)
    listed: dict[str, str] = {}
    for index, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{index}-of-00002.safetensors"
        save_file({name: net[name].contiguous() for name in part}, folder / file)
        listed |= dict.fromkeys(part, file)
    index_file = folder / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": listed}))
    return index_file


def test_safetensors_whole_and_in_parts(published: Path, tmp_path: Path) -> None:
    net, _ = networks()
    (published / WEIGHTS).unlink()
    index = shard(published / "model", net)
    run(published, tmp_path / "parts")
    assert_faithful(tmp_path / "parts")
    history = json.loads((tmp_path / "parts" / "provenance.json").read_text())
    before = history["files"]["transformer.safetensors"]
    assert before["from"] == index.name
    save_file({"else": torch.ones(1)}, index.parent / "model-00002-of-00002.safetensors")
    assert sha256_of(index) != before["sha256"], "the parts count"
    with pytest.raises(
        CheckpointError, match=r"index\.json: lists 'net\..*', which .* does not hold"
    ):
        read_weights(index)
    shutil.rmtree(published / "model")
    whole = published / "model.safetensors"
    save_file({name: t.contiguous() for name, t in net.items()}, whole)
    given = Parts(config=tmp_path / "small.yaml")
    assert find_parts(str(published), given, no_network).weights == whole
    assert read_weights(whole).keys() == net.keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is no index of safetensors"),
        ('{"weight_map": {}}', "is no index of safetensors"),
        ('{"weight_map": {"a": "../secret.safetensors"}}', "expected a .safetensors beside it"),
        ('{"weight_map": {"a": "secret.pt"}}', "expected a .safetensors beside it"),
        ('{"weight_map": {"a": 7}}', "expected a .safetensors beside it"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors: cannot be read"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_weights(index)


@pytest.mark.parametrize("old", [False, True])
def test_prompts_that_torch_saved(tmp_path: Path, old: bool) -> None:
    """They were called cut short; what is cut is still called so."""
    file = tmp_path / "aloha_t5_embeddings.pkl"
    torch.save(prompts(), file, _use_new_zipfile_serialization=not old)
    found = load_prompts(file)
    assert found.keys() == prompts().keys()
    assert all(torch.equal(found[name], rows[0]) for name, rows in prompts().items())
    cut(file)
    with pytest.raises(CheckpointError, match=r"\.pkl: cannot be read .*cut short"):
        load_prompts(file)
    torch.save({"a": Bomb()}, file, _use_new_zipfile_serialization=not old)
    with pytest.raises(CheckpointError, match=r"asks for 'posix\.system', which a table of prompt"):
        load_prompts(file)
    repeated = torch.zeros(1, 1, 16).expand(1, 10_000_000, 16)
    torch.save({"a": repeated}, file, _use_new_zipfile_serialization=not old)
    with pytest.raises(CheckpointError, match="its tensors come to more than 16 times its bytes"):
        load_prompts(file)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def rename_a_tensor(path: Path) -> None:
    tensors = torch.load(path, weights_only=False)
    for block in (0, 1):
        tensors[f"net.blocks.{block}.mlp.w"] = tensors.pop(f"net.blocks.{block}.mlp.layer1.weight")
    tensors["net.final_layer.linear.weight"] = torch.zeros(2, 2)
    torch.save(tensors, path)


def spoil_a_number(path: Path) -> None:
    tensors = torch.load(path, weights_only=False)
    tensors["net.final_layer.linear.weight"][3, 3] = torch.nan
    torch.save(tensors, path)


class Bomb:
    def __reduce__(self) -> Any:
        return (os.system, ("touch sprung",))


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        (WEIGHTS, cut, r"\.pt: cannot be read as weights .*cut short"),
        (WEIGHTS, lambda p: p.write_bytes(b""), r"\.pt: cannot be read as weights"),
        (WEIGHTS, lambda p: p.write_text("version https://git-lfs.github"), "git lfs pull"),
        (WEIGHTS, lambda p: torch.save({"a": Bomb()}, p), "asks for 'posix.system'"),
        (WEIGHTS, lambda p: torch.save([1], p), "holds no named tensors but list"),
        (WEIGHTS, lambda p: torch.save({"model": {}}, p), "it has none of the .* it has none$"),
        (WEIGHTS, lambda p: torch.save({"x": {}}, p), "'x' is no tensor but dict; .*state_dict"),
        (
            WEIGHTS,
            rename_a_tensor,
            r"missing: blocks\.\{0-1\}\.mlp\.layer1\.weight; "
            r"unknown: blocks\.\{0-1\}\.mlp\.w; "
            r"wrong shape: final_layer\.linear\.weight is \(2, 2\), expected \(64, 64\)",
        ),
        (WEIGHTS, spoil_a_number, "'final_layer.linear.weight' holds numbers that are not finite"),
        ("tokenizer.pth", cut, r"tokenizer\.pth: cannot be read as weights"),
        ("tokenizer.pth", lambda p: torch.save({"a": torch.ones(1)}, p), "is something else"),
        ("aloha_t5_embeddings.pkl", cut, r"\.pkl: cannot be read"),
        ("aloha_dataset_statistics.json", lambda p: p.write_text("{}"), "'actions_min' is missing"),
        ("../small.yaml", lambda p: p.write_text("layout: aloha"), "key 'image_size' is missing"),
        (
            "../small.yaml",
            lambda p: p.write_text(p.read_text().replace("text_width: 16", "text_width: 8")),
            r"'fold shirt' has shape \(32, 16\)",
        ),
    ],
)
def test_wrong_file_is_one_error_and_the_target_is_untouched(
    published: Path,
    tmp_path: Path,
    file: str,
    spoil: Callable[[Path], object],
    message: str,
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "precious").write_text("kept")
    spoil(published / file)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=message):
        run(published, target, force=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("sprung").exists()


def test_existing_target_is_replaced_only_by_force(published: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(CheckpointError, match="is there already; give another name, or --force"):
        run(published, target)
    assert (target / "old").exists()
    run(published, target, force=True)
    assert not (target / "old").exists()
    assert_faithful(target)
    assert {p.name for p in tmp_path.iterdir()} == {"download", "small.yaml", "target"}


def test_full_disk_is_one_error(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot be written: .*No space left"):
        run(published, tmp_path / "target")
    assert {p.name for p in tmp_path.iterdir()} == {"download", "small.yaml"}


def test_command(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "target"
    words = [str(published), str(target), "--config", str(tmp_path / "small.yaml")]
    assert cosmos.main(["convert", *words]) == 0
    assert f"done: {target}" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    for wrong in (words, [str(tmp_path / "empty"), str(tmp_path / "x")]):
        assert cosmos.main(["convert", *wrong]) == 1
        told = capsys.readouterr().err
        assert told.startswith("error: ") and len(told.splitlines()) == 1
