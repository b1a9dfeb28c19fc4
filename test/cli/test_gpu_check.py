"""Pins that gpu-check fills every row, sees a wrong number, and says what only a GPU can tell.

On a CPU, at the small size. What is compiled is captured and not translated, which would take a
minute; the file of figures is read back.
"""

from __future__ import annotations

import json
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.forked import forked_workers

from cosmos_policy_ros.cli import cosmos, gpu_check
from cosmos_policy_ros.inference import gpu_bench
from cosmos_policy_ros.inference.gpu_bench import NEEDS_GPU, Row
from cosmos_policy_ros.model import transformer
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.straightforward import DiffusersTransformer

TINY: dict[str, Any] = {
    "precision": "float32",
    "image_size": 32,
    "denoising_steps": 3,
    "chunk_steps": 10,
    "text_tokens": 32,
    "transformer": {"layers": 2, "heads": 2, "head_dim": 24, "text_width": 16, "adaln_rank": 8},
    "vae": {"base_width": 4},
}


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "SMALL", TINY)
    monkeypatch.setattr("cosmos_policy_ros.inference.gpu_numbers.SMALL", TINY)
    # Captured only: that the graphs can be traced on is for test/model/test_devices.py to see.
    traced = partialmethod(CosmosPolicy.compile, backend="eager")
    monkeypatch.setattr(CosmosPolicy, "compile", traced)


def check(tmp_path: Path, *options: str) -> tuple[int, dict[str, Any]]:
    output = tmp_path / "figures.json"
    code = cosmos.main(["gpu-check", "--device", "cpu", "--output", str(output), *options])
    return code, json.loads(output.read_text())


def test_every_row_is_filled_or_needs_a_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with forked_workers():
        code, found = check(tmp_path, "--calls", "8")
    printed = capsys.readouterr().out
    assert code == 0 and "no number is wrong" in printed
    rows = {row["name"]: row for row in found["rows"]}
    assert len(rows) == len(found["rows"]) > 40, "names are one row each"
    for name, row in rows.items():
        assert name in printed
        if row["value"] is None:
            assert NEEDS_GPU in row["remark"], name
        else:
            assert row["value"] == row["value"] and row["value"] >= 0, name
    for name in (
        "encode",
        "10 steps, as it is",
        "10 steps, compiled",
        "a whole decision, compiled",
    ):
        assert rows[name]["value"] > 0 and rows[name]["figures"]["tera_flops"] > 0
    assert rows["10 steps, as it is"]["figures"]["straightforward_seconds"] > 0
    assert rows["training step of 1, adapters"]["figures"]["encoding"] > 0
    assert rows["best of 8, on one device"]["value"] > rows["imagine 24 futures"]["value"]
    assert "was killed" in rows["killed in a call, and back"]["remark"]
    assert found["machine"]["torch"].startswith(torch.__version__)


def test_a_wrong_number_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A norm that is not the released one, as another version of a library might bring."""
    made = DiffusersTransformer.__init__

    def other(self: DiffusersTransformer, config: Any) -> None:
        made(self, config)
        for block in self.core.transformer_blocks:
            block.attn1.norm_q.eps = 1e-2

    monkeypatch.setattr(DiffusersTransformer, "__init__", other)
    code, found = check(tmp_path, "--only", "right")
    assert code == 1
    assert "WRONG: one evaluation, as diffusers (small);" in capsys.readouterr().out
    assert {row["section"] for row in found["rows"]} == {"right"}
    assert transformer.EPSILON == 1e-6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--calls", "0"], "--calls 0: at least 1"),
        (["--calls", "-3"], "--calls -3"),
        (["--folder", "/nowhere"], "--folder: /nowhere"),
        (["--output", "/nowhere/figures.json"], "--output: /nowhere"),
    ],
)
def test_what_would_be_in_vain_is_refused_at_once(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cosmos.main(["gpu-check", "--device", "cpu", *options]) == 1
    assert words in capsys.readouterr().err


def test_a_section_without_memory_ends_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")

    monkeypatch.setattr(gpu_check, "check_numbers", full)
    code, found = check(tmp_path, "--only", "right", "--only", "memory")
    assert code == 1 and "no memory for all of right" in capsys.readouterr().out
    first, *others = found["rows"]
    assert "9 GiB" in first["remark"] and first["value"] is None
    assert {row["section"] for row in others} == {"memory"}


@pytest.mark.parametrize(
    ("value", "limit", "wrong"),
    [(0.0, 0.0, False), (1e-9, 0.0, True), (float("nan"), 1.0, True), (None, 0.0, False)],
)
def test_what_is_wrong(value: float | None, limit: float, wrong: bool) -> None:
    assert Row("right", "x", value, limit=limit).wrong == wrong
    assert not Row("fast", "x", value, aim=limit).wrong, "an aim that is missed is not wrong"


def test_a_layer_costs_what_is_counted_by_hand() -> None:
    layer = torch.nn.Linear(64, 32, bias=False)
    assert gpu_bench.tera_flops(lambda: layer(torch.ones(8, 64))) == 2 * 8 * 64 * 32 / 1e12
