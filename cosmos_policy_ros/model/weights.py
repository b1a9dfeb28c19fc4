"""Weight files of every kind into tensors, without running anything that a file may contain."""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from cosmos_policy_ros.errors import CheckpointError
from cosmos_policy_ros.model.pickles import AGAIN, check_zip, load_index
from cosmos_policy_ros.model.transformer_keys import OFFICIAL_PREFIX
from cosmos_policy_ros.rig.untrusted import (
    UnreadableError,
    check_file,
    open_file,
    reading,
    shown,
)

DCP_INDEX = ".metadata"
EXTRA_STATE = "_extra_state"  # scratch of TransformerEngine: bytes, no weights
LFS_POINTER = b"version https://git-lfs"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a ``.pt`` or ``.pth``, a ``.safetensors`` or a distributed checkpoint.

    Files are mapped into memory where their format allows it, so nothing is read before it is used.

    Raises:
        CheckpointError: unreadable, cut short, or holding something that is no tensor.
    """
    if path.is_dir():
        return _read_distributed(path)
    with reading(path, "weights", CheckpointError, AGAIN):
        size = _refuse_pointer(path)
        try:
            content = load_file(path) if path.suffix == ".safetensors" else _read_torch(path, size)
        except pickle.UnpicklingError as error:
            raise CheckpointError(_describe_unpickling(path, error)) from error
        return _only_tensors(content, path, size)


def split_released(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Separate the policy's network from what else a training checkpoint may hold.

    Returns:
        The tensors below ``net.`` and the names of the others; all of them when none is.
    """
    network = {name: t for name, t in tensors.items() if name.startswith(OFFICIAL_PREFIX)}
    if not network:
        return dict(tensors), ()
    return network, tuple(sorted(tensors.keys() - network.keys()))


def sha256_of(path: Path) -> str:
    """Return the sha256 (hex) of a file, or over the names and bytes of a folder's files."""
    sha = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            sha.update(f"{file.relative_to(path).as_posix()} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()


def is_distributed(path: Path) -> bool:
    """Return whether the folder is a distributed checkpoint (an index and ``.distcp`` files)."""
    return (path / DCP_INDEX).is_file()


def _read_torch(path: Path, size: int) -> Any:
    with path.open("rb") as file:
        check_zip(file, size)
    with torch.serialization.safe_globals([io.BytesIO]):
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )


def _only_tensors(content: Any, path: Path, size: int) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds no named tensors but {type(content).__name__}")
    kept = {str(k): v for k, v in content.items() if not str(k).endswith(EXTRA_STATE)}
    for name, value in kept.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: '{shown(name)}' is no tensor but {type(value).__name__}; a file with the "
                f"network's tensors and nothing around them is needed"
            )
        # A view may repeat a few numbers for ever, or reach beyond those that are stored.
        if value.numel() * value.element_size() > size:
            raise UnreadableError(
                f"tensor '{shown(name)}' has {value.numel()} numbers, more than the file"
            )
    return kept


def distributed_reader(folder: Path) -> Any:
    """Return a reader of a distributed checkpoint that unpickles nothing but its index's own types.

    Raises:
        CheckpointError: no index, or not one.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata

    index: Metadata = load_index(folder / DCP_INDEX)

    class Reader(FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
            return index

    return Reader(folder)


def _read_distributed(folder: Path) -> dict[str, Tensor]:
    """Read the tensors and nothing else: entries of bytes would be unpickled."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = distributed_reader(folder)
    with reading(folder, "a distributed checkpoint", CheckpointError, AGAIN):
        listed = {
            name: entry
            for name, entry in reader.read_metadata().state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        stored = sum(check_file(file) for file in folder.glob("*.distcp"))
        claimed = sum(
            math.prod(entry.size) * entry.properties.dtype.itemsize for entry in listed.values()
        )
        if claimed > stored:
            raise UnreadableError(
                f"cannot be read as a distributed checkpoint: its index claims {claimed} bytes, "
                f"{stored} are there"
            )
        tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in listed.items()
        }
        with warnings.catch_warnings():  # that this is not a distributed job; it is not
            warnings.simplefilter("ignore")
            load(tensors, storage_reader=reader)
        return tensors


def _refuse_pointer(path: Path) -> int:
    """Return the file's size [bytes], unless it stands for another."""
    with open_file(path) as stream:
        start = stream.read(len(LFS_POINTER))
        size = os.fstat(stream.fileno()).st_size
    if start == LFS_POINTER:
        raise CheckpointError(
            f"{path}: only points to the weights; fetch them with 'git lfs pull' in its folder"
        )
    return size


def _describe_unpickling(path: Path, error: pickle.UnpicklingError) -> str:
    forbidden = re.search(r"GLOBAL (\S+)", str(error))
    if forbidden:
        return (
            f"{path}: refused, it asks for '{shown(forbidden[1])}', which weights have no use "
            f"for; it may run code when loaded the usual way: do not use it"
        )
    return f"{path}: cannot be read as weights; {AGAIN}"
