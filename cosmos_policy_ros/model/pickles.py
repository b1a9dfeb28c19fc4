"""Pickles without their danger: only what was expected is built, anything else is refused by name.

A pickle is a program, and loading one may run whatever its author wrote. Two kinds cannot be
avoided: the prompt embeddings that NVIDIA publishes, and the index of a distributed checkpoint.
Both are read by an unpickler that knows a closed list of names and calls nothing that is not on it.
"""

from __future__ import annotations

import collections
import enum
import importlib
import io
import pathlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cosmos_policy_ros.errors import CheckpointError

# What the index of a distributed checkpoint is made of: plain records and enumerations.
INDEX_RECORDS = {
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
}
PATHS = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path", "PurePath")


class ForbiddenNameError(pickle.UnpicklingError):
    """A pickle asked for something that is not on the list."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: BinaryIO, allowed: Mapping[str, Any]) -> None:
        super().__init__(stream)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a name, or refuse it."""
        full = f"{module}.{name}"
        if full not in self._allowed:
            raise ForbiddenNameError(full)
        return self._allowed[full]


def load_prompts(path: Path) -> dict[str, Tensor]:
    """Read the published ``*_t5_embeddings.pkl``: a mapping from prompts to tensors.

    Returns:
        Per prompt (L, D) on the CPU, bit for bit as written.

    Raises:
        CheckpointError: unreadable, cut short, or holding anything else; a forbidden name is told.
    """
    allowed = {
        "_codecs.encode": _encode,
        "collections.OrderedDict": collections.OrderedDict,
        "torch._utils._rebuild_tensor_v2": _view_storage,
        "torch.storage._load_from_bytes": _load_storage,
    }
    content = _load(path, allowed, "a table of prompt embeddings")
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: holds no table of prompts but {type(content).__name__}")
    prompts = {}
    for prompt, embedding in content.items():
        if not isinstance(prompt, str):
            raise CheckpointError(f"{path}: its keys must be prompts, found {prompt!r}")
        if not isinstance(embedding, Tensor) or embedding.ndim != 3 or len(embedding) != 1:
            found = getattr(embedding, "shape", type(embedding).__name__)
            raise CheckpointError(
                f"{path}: '{prompt}' must be a tensor (1, tokens, width), found {found}"
            )
        prompts[prompt] = embedding[0].contiguous()
    return prompts


def load_index(path: Path) -> Any:
    """Read the ``.metadata`` of a distributed checkpoint.

    Returns:
        ``torch.distributed.checkpoint.metadata.Metadata``.

    Raises:
        CheckpointError: unreadable or holding anything else; a forbidden name is told.
    """
    from torch.distributed.checkpoint.metadata import Metadata

    allowed: dict[str, Any] = {
        "builtins.getattr": _member,
        "collections.OrderedDict": collections.OrderedDict,
        "torch.Size": torch.Size,
        "torch.serialization._get_layout": _layout,
    }
    for module, names in INDEX_RECORDS.items():
        found = importlib.import_module(module)
        allowed |= {
            f"{module}.{name}": getattr(found, name) for name in names if name in vars(found)
        }
    for name, value in vars(torch).items():
        if isinstance(value, torch.dtype):
            allowed[f"torch.{name}"] = value
    for name in PATHS:
        for module in ("pathlib", "pathlib._local"):
            allowed[f"{module}.{name}"] = pathlib.PurePosixPath
    content = _load(path, allowed, "the index of a distributed checkpoint")
    if not isinstance(content, Metadata):
        raise CheckpointError(f"{path}: holds no index but {type(content).__name__}")
    return content


def _load(path: Path, allowed: Mapping[str, Any], what: str) -> Any:
    try:
        with path.open("rb") as stream:
            return _Unpickler(stream, allowed).load()
    except ForbiddenNameError as error:
        raise CheckpointError(
            f"{path}: refused, it asks for '{error}', which {what} has no use for; it may run code "
            f"when loaded the usual way: do not use it"
        ) from error
    # A pickle can fail in as many ways as a program.
    except Exception as error:
        raise CheckpointError(
            f"{path}: cannot be read as {what} ({type(error).__name__}: {error}); it may have been "
            f"cut short: copy or download it again"
        ) from error


def _member(kind: Any, name: Any) -> enum.Enum:
    """Stand in for ``getattr``, by which Python 3.11.0 to 3.11.3 spell the members of enumerations.

    The kind can only be something allowed, or made of it.
    """
    if isinstance(kind, enum.EnumMeta) and name in kind.__members__:
        return kind.__members__[name]
    raise ForbiddenNameError(f"builtins.getattr({kind!r}, {name!r})")


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for the function by which old pickles spell bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes spelt in {encoding}")
    return text.encode("latin1")


def _load_storage(content: bytes) -> Any:
    """Stand in for torch's own function, which would load these bytes with everything allowed."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _view_storage(
    storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *_: object
) -> Tensor:
    """Stand in for torch's own function, which would enlarge a storage that is too short."""
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError(f"a tensor made of {type(storage).__name__}")
    numbers = [offset, *size, *stride]
    if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        raise pickle.UnpicklingError(f"a tensor of size {size} and stride {stride}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    numbers_stored = storage._untyped_storage.nbytes() // storage.dtype.itemsize
    if 0 in size or last >= numbers_stored:
        raise pickle.UnpicklingError(f"a tensor of size {size} in {numbers_stored} numbers")
    view = torch.empty(0, dtype=storage.dtype)
    return view.set_(storage._untyped_storage, offset, tuple(size), tuple(stride)).clone()


def _layout(name: str) -> torch.layout:
    if name != "torch.strided":
        raise pickle.UnpicklingError(f"a tensor laid out as {name}")
    return torch.strided
