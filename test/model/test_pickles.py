"""Pins that a pickle can run nothing and hide nothing, and that good ones come back bit for bit."""

from __future__ import annotations

import collections
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import metadata as dcp

from cosmos_policy_ros.errors import CheckpointError
from cosmos_policy_ros.model.pickles import load_index, load_prompts


class Calls:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def write(folder: Path, content: Any, protocol: int = 4) -> Path:
    path = folder / "aloha_t5_embeddings.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def embedding(seed: int = 0) -> torch.Tensor:
    """Return (1, 512, 16) bfloat16 with every awkward kind of number, padded with zeros."""
    rows = torch.zeros(1, 512, 16, dtype=torch.bfloat16)
    rows[0, :4] = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed)).bfloat16()
    rows[0, 4, :3] = torch.tensor([-0.0, 1e-40, 3.3e38]).bfloat16()
    rows[0, 5, 0] = 1
    return rows


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_bit_survives(tmp_path: Path, protocol: int) -> None:
    table = {"fold shirt": embedding(1), "put candy in bag": embedding(2)}
    found = load_prompts(write(tmp_path, table, protocol))
    assert list(found) == list(table)
    for prompt, expected in table.items():
        assert found[prompt].dtype == torch.bfloat16 and found[prompt].device.type == "cpu"
        assert torch.equal(found[prompt].view(torch.int16), expected[0].view(torch.int16))


def test_views_and_shared_storage_come_back_as_they_were(tmp_path: Path) -> None:
    whole = torch.arange(48.0).reshape(1, 12, 4)
    table = {"a": whole[:, 3:5], "b": whole.transpose(1, 2), "c": whole}
    found = load_prompts(write(tmp_path, table))
    for prompt, expected in table.items():
        assert torch.equal(found[prompt], expected[0])


@pytest.mark.parametrize("where", ["instead", "beside", "within a storage"])
def test_nothing_is_run(tmp_path: Path, where: str) -> None:
    trap = tmp_path / "sprung"
    bomb = Calls(os.system, f"touch {trap}")
    content: Any = bomb
    if where == "beside":
        content = {"fold shirt": embedding(), "other": bomb}
    if where == "within a storage":
        load = torch.storage._load_from_bytes  # type: ignore[attr-defined]
        stored = io.BytesIO()
        torch.save(bomb, stored, _use_new_zipfile_serialization=False)
        content = {"fold shirt": Calls(load, stored.getvalue())}
    path = write(tmp_path, content)
    with pytest.raises(CheckpointError) as caught:
        load_prompts(path)
    assert not trap.exists()
    assert str(path) in str(caught.value)
    if where != "within a storage":
        assert f"'{os.system.__module__}.system'" in str(caught.value)
    pickle.loads(path.read_bytes())  # noqa: S301
    assert trap.exists(), "the trap would not have worked"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"a": np.zeros(3)}, "numpy"),
        ({"a": Path("x")}, "pathlib"),
        ({"a": Calls(eval, "1")}, "builtins.eval"),
        ({"a": Calls(getattr, "x", "join")}, "builtins.getattr"),
        ({"a": torch.nn.Linear(1, 1)}, "torch.nn"),
        ([1, 2], "holds no table of prompts but list"),
        ({}, "holds no table"),
        ({1: torch.zeros(1, 2, 2)}, "keys must be prompts, found 1"),
        ({"a": "text"}, "'a' must be a tensor"),
        ({"a": torch.ones(3)}, "'a' must be a tensor"),
        ({"a": torch.ones(2, 3, 3)}, "'a' must be a tensor"),
        (collections.OrderedDict(a=3), "'a' must be a tensor"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: Any, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_prompts(write(tmp_path, content))


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (1, 3, 3), (9, 3, 1)),
        (1, (1, 2, 4), (8, 4, 1)),
        (0, (1, 2, 4), (8, 7, 1)),
        (0, (1, 2, 4), (8, -4, 1)),
        (-1, (1, 2, 4), (8, 4, 1)),
    ],
)
def test_tensor_beyond_its_storage_is_refused(
    tmp_path: Path, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    rebuild = torch._utils._rebuild_tensor_v2  # type: ignore[attr-defined]
    storage = torch.storage.TypedStorage(8, dtype=torch.float32)
    forged = Calls(rebuild, storage, offset, size, stride, False, collections.OrderedDict())
    with pytest.raises(CheckpointError, match="a tensor of size"):
        load_prompts(write(tmp_path, {"a": forged}))


@pytest.mark.parametrize("kept", [0, 10, 500, -1])
def test_cut_file_is_named(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path, {"fold shirt": embedding()})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"embeddings\.pkl: cannot be read .* cut short"):
        load_prompts(path)


def test_index_of_a_distributed_checkpoint_runs_nothing(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    path = tmp_path / ".metadata"
    path.write_bytes(pickle.dumps({"state_dict_metadata": Calls(os.system, f"touch {trap}")}))
    with pytest.raises(CheckpointError, match=r"system', which the index of a distributed"):
        load_index(path)
    assert not trap.exists()
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(CheckpointError, match="holds no index but list"):
        load_index(path)


def test_members_of_enumerations_as_early_python_3_11_spells_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By getattr; Debian 12 has such a Python, and no run was resumed there."""
    kind = dcp._MEM_FORMAT_ENCODING
    monkeypatch.setattr(kind, "__reduce_ex__", lambda self, _: (getattr, (kind, self.name)))
    properties = dcp.TensorProperties(torch.float32)
    stored = dcp.TensorStorageMetadata(properties, torch.Size([2]), [])
    path = tmp_path / ".metadata"
    path.write_bytes(pickle.dumps(dcp.Metadata({"w": stored})))
    assert b"getattr" in path.read_bytes()
    found = load_index(path).state_dict_metadata["w"].properties
    assert found.memory_format is properties.memory_format


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (dcp._MEM_FORMAT_ENCODING, "__class__"),
        (dcp._MEM_FORMAT_ENCODING, "mro"),
        (dcp.Metadata, "__init__"),
        (dcp.Metadata({}), "__reduce__"),
    ],
)
def test_getattr_gives_nothing_else(tmp_path: Path, kind: Any, name: str) -> None:
    path = tmp_path / ".metadata"
    path.write_bytes(pickle.dumps(Calls(getattr, kind, name)))
    with pytest.raises(CheckpointError, match=r"refused, it asks for 'builtins\.getattr\("):
        load_index(path)
