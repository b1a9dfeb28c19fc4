"""Pins that a new prompt joins the table whole, rounded and padded like the released ones.

The language model is a stand-in here: it takes 19 GB.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos_policy_ros.cli import cosmos
from cosmos_policy_ros.core.errors import CheckpointError
from cosmos_policy_ros.model.text import LANGUAGE_MODEL, add_prompts, load_text

WIDTH, TOKENS = 64, 512


def main(arguments: list[str]) -> int:
    return cosmos.main(["embed-prompts", *arguments])


@pytest.fixture
def folder(tmp_path: Path, tiny_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny_path, tmp_path / "checkpoint"))
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("text_tokens: 2", f"text_tokens: {TOKENS}"))
    (folder / "provenance.json").write_text('{"source": "here"}')
    return folder


def encoder(prompt: str) -> Tensor:
    """Return one float32 row per word and one for the end."""
    rows = len(prompt.split()) + 1
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(rows))


def test_prompt_is_rounded_padded_and_added(folder: Path) -> None:
    before = load_text(folder / "text.safetensors", TOKENS, WIDTH)
    prompts = ["stack two cups", "fold shirt", "stack two cups"]
    assert add_prompts(folder, prompts, encoder) == ("stack two cups",)
    after = load_text(folder / "text.safetensors", TOKENS, WIDTH)
    found = after.embedding("stack two cups")
    assert found.dtype == torch.bfloat16 and found.shape == (TOKENS, WIDTH)
    assert torch.equal(found[:4], encoder("stack two cups").bfloat16())
    assert not found[4:].any()
    for prompt in before.embeddings:
        assert torch.equal(after.embedding(prompt), before.embedding(prompt))
    assert set(after.embeddings) == {*before.embeddings, "stack two cups"}


def test_history_is_continued(folder: Path) -> None:
    for prompt in ("stack two cups", "open the jar"):
        add_prompts(folder, [prompt], encoder)
    history = json.loads((folder / "provenance.json").read_text())
    assert history["source"] == "here"
    added = [(entry["prompt"], entry["encoder"]) for entry in history["prompts_added"]]
    assert added == [("stack two cups", LANGUAGE_MODEL), ("open the jar", LANGUAGE_MODEL)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.ones(3, WIDTH + 1), r"'b' has shape \(3, 65\)"),
        (torch.ones(TOKENS + 1, WIDTH), r"'b' has shape \(513, 64\)"),
        (torch.full((3, WIDTH), torch.nan), "'b' is not finite"),
    ],
)
def test_one_bad_embedding_adds_none(folder: Path, rows: Tensor, message: str) -> None:
    before = (folder / "text.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=message):
        add_prompts(folder, ["a", "b"], lambda p: encoder(p) if p == "a" else rows)
    assert (folder / "text.safetensors").read_bytes() == before


def test_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        add_prompts(tmp_path / "nowhere", ["a"], encoder)


def test_command_without_the_language_model_says_what_to_install(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["--checkpoint", str(folder), "stack two cups"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "python -m pip install transformers" in error
    assert main(["--checkpoint", str(folder / "nowhere"), "stack two cups"]) == 1
    assert "does not exist" in capsys.readouterr().err
