"""Pins that a faster way to run the network changes no result, and its failure stops nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.model.checkpoint import choose_device
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.rig.decision import Query


def test_auto_is_a_gpu_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda _, device: SimpleNamespace(device=device))
    assert choose_device("auto") == "cuda"


@pytest.mark.parametrize("name", ["nonsense", "cuda:99"])
def test_unusable_device_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{name}' cannot be used .* device:=auto"):
        choose_device(name)


def test_compiled_blocks_give_the_same(shallow: Path, query: Query) -> None:
    """Traced for real; the code generator behind it takes a minute and is left to gpu-check.

    Queries find every variant compiled: with a prefix or without, one sample or several.
    """
    torch._dynamo.reset()  # other tests of this process have compiled as well
    counters.clear()
    policy = CosmosPolicy.load(shallow, device="cpu", denoising_steps=3)
    expected = policy.decide(query)
    policy.compile(backend="aot_eager")
    assert "uncompiled" not in policy.info.warning
    compiled = counters["stats"]["unique_graphs"]
    assert compiled == 2, "one block stands for all, but for the last of an answer"
    found = policy.decide(query)
    np.testing.assert_allclose(found.positions, expected.positions, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == compiled, "a query has waited for the compiler"


def test_bfloat16_on_a_cpu(tiny: CosmosPolicy, tmp_path: Path, query: Query) -> None:
    folder = shutil.copytree(tiny.checkpoint.path, tmp_path / "half")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("precision: float32", "precision: bfloat16"))
    policy = CosmosPolicy.load(folder, device="cpu")
    assert policy.checkpoint.transformer.dtype == policy.checkpoint.tokenizer.dtype
    assert policy.checkpoint.transformer.dtype == torch.bfloat16
    found, expected = policy.decide(query), tiny.decide(query)
    span = np.ptp(expected.positions, axis=0).max()
    difference = np.abs(found.positions - expected.positions).max()
    assert 0 < difference < 0.2 * span, "rounded, and the same"


def test_compiler_that_fails_leaves_the_network_as_it_was(shallow: Path, query: Query) -> None:
    policy = CosmosPolicy.load(shallow, device="cpu", denoising_steps=3)
    expected = policy.decide(query)
    assert expected.denoising_steps == 3

    def broken(*_: object) -> None:
        raise RuntimeError("no C++ compiler\nmore lines")

    policy.compile(backend=broken)
    assert "runs uncompiled" in policy.info.warning
    assert "no C++ compiler" in policy.info.warning and "more lines" not in policy.info.warning
    np.testing.assert_array_equal(policy.decide(query).positions, expected.positions)
