"""Pins that a pickle can run nothing and hide nothing, and that good ones come back bit for bit."""

from __future__ import annotations

import collections
import io
import os
import pickle
import resource
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import metadata as dcp

from cosmos_policy_ros.core.errors import CheckpointError
from cosmos_policy_ros.model.weights import load_index, load_prompts, read_weights


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
    with pytest.raises(CheckpointError, match=r"embeddings\.pkl: cannot be read.* cut short"):
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


def ops(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


def tower(levels: int, step: bytes) -> bytes:
    return ops(b"}", b"(", b")", step * levels, b"Nu")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (ops(b"Nr\xff\xff\xff\x0f"), "keeps object 268435455"),
        (b"Nr\xff\xff\xff\x7f.", "keeps object"),
        (b"Np999999999\n.", "keeps object"),
        (ops(b"\x8e" + (4 << 30).to_bytes(8, "little")), "cannot be read as"),
        (ops(b"\x96" + (4 << 30).to_bytes(8, "little")), "cannot be read as"),
        (ops(b"\x8d" + (2**62).to_bytes(8, "little")), "cannot be read as"),
        (ops(b"B\xff\xff\xff\xff"), "cannot be read as"),
        (ops(b"\x8b\xff\xff\xff\x7f"), "cannot be read as"),
        (ops(b"\x95" + (2**62).to_bytes(8, "little"), b"N"), "a frame of"),
        (tower(1_000_000, b"\x85"), "nests objects more than 100 deep"),
        (ops(b"}", b"(", b")", b"2\x86" * 60, b"Nu"), "more than 10000000"),
        (ops(b"I" + b"9" * 100_000 + b"\n"), "cannot be read as"),
        (ops(b"(((((0000N"), "holds no table"),
        (b"", "cannot be read as"),
    ],
)
def test_a_few_bytes_claim_nothing(tmp_path: Path, content: bytes, told: str) -> None:
    """Nine bytes cost 4.3 GB before, and a key of a million tuples ended the process."""
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=rf"a\.pkl: .*{told}"):
        load_prompts(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "kB"


def test_one_storage_copied_for_ever_is_refused(tmp_path: Path) -> None:
    stored, rebuild = torch.ones(4096).storage(), torch._utils._rebuild_tensor_v2  # type: ignore[attr-defined]
    whole = (stored, 0, (1, 64, 64), (4096, 64, 1), False, collections.OrderedDict())
    path = write(tmp_path, {f"{i}": Calls(rebuild, *whole) for i in range(1000)})
    with pytest.raises(CheckpointError, match="more than 16 times its bytes"):
        load_prompts(path)


def test_a_view_that_repeats_a_number_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"a": torch.ones(1).expand(1, 1000, 1000)})
    with pytest.raises(CheckpointError, match="a tensor of size"):
        load_prompts(path)


def test_weights_that_are_packed_or_repeat_themselves_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.ones(1).expand(10_000, 10_000)}, path)
    with pytest.raises(CheckpointError, match="'a' has 100000000 numbers, more than the file"):
        read_weights(path)
    torch.save({"a": torch.zeros(1 << 20)}, path)
    packed = tmp_path / "p.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(CheckpointError, match="is packed, which weights never are"):
        read_weights(packed)


def test_an_index_that_claims_more_than_is_there_is_refused(tmp_path: Path) -> None:
    index = dcp.Metadata(
        {
            "a": dcp.TensorStorageMetadata(
                dcp.TensorProperties(torch.float32), torch.Size([1 << 20, 1 << 20]), []
            )
        }
    )
    (tmp_path / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointError, match=f"claims {4 << 40} bytes, 0 are there"):
        read_weights(tmp_path)


def test_a_pipe_in_place_of_weights_hangs_nothing(tmp_path: Path) -> None:
    for name in ("a.pkl", "b.pt", "c.safetensors"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="is a pipe"):
        load_prompts(tmp_path / "a.pkl")
    for name in ("b.pt", "c.safetensors"):
        with pytest.raises(CheckpointError, match="is a pipe"):
            read_weights(tmp_path / name)
