"""Weight files of every kind into tensors, without running anything that a file may contain.

A pickle is a program. The two kinds that cannot be avoided, NVIDIA's prompt embeddings and the
index of a distributed checkpoint, are read by an unpickler that knows a closed list of names; the
weights that ``torch.save`` wrote by torch's own.
"""

from __future__ import annotations

import collections
import enum
import importlib
import io
import math
import os
import pathlib
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file
from torch import Tensor

from cosmos_policy_ros.core.errors import CheckpointError
from cosmos_policy_ros.core.untrusted import (
    UnreadableError,
    check_file,
    open_file,
    parse_json,
    read_file,
    read_text,
    reading,
    shown,
)

AGAIN = "it may have been cut short: copy or download it again"

DCP_INDEX = ".metadata"
SHARDS = ".safetensors.index.json"  # how the index of several safetensors files ends
WRAPPERS = ("state_dict", "model")  # what trainers call the weights in a file that holds more
EXTRA_STATE = "_extra_state"  # scratch of TransformerEngine: bytes, no weights
MAX_INDEX_BYTES = 1 << 24  # of 574 tensors it has 60 kB
LFS_POINTER = b"version https://git-lfs"
TORCH_MAGIC = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)  # of torch.save, no zip

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

# Of a pickle, which is read whole; a prompt takes a megabyte, and a hundred are many.
MAX_BYTES = 1 << 30
# Of objects within each other; the index of a distributed checkpoint has ten levels.
MAX_DEPTH = 100
# Within one object, each counted as often as it is met; an index of 2B weights has 50 000.
MAX_OBJECTS = 10_000_000
# Bytes of all tensors together for one of the file; those of several prompts may share one.
MAX_COPIES = 16


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a ``.pt`` or ``.pth``, of safetensors or a distributed checkpoint.

    Several safetensors files are read by their index, whose name ends in :data:`SHARDS`. Files are
    mapped into memory where their format allows it, so nothing is read before it is used.
    """
    if path.is_dir():
        return _read_distributed(path)
    if path.name.endswith(SHARDS):
        return _read_shards(path)
    with reading(path, "weights", CheckpointError, AGAIN):
        with open_file(path) as stream:
            start = stream.read(len(LFS_POINTER))
            size = os.fstat(stream.fileno()).st_size
        if start == LFS_POINTER:
            raise CheckpointError(
                f"{path}: only points to the weights; fetch them with 'git lfs pull' in its folder"
            )
        content: Any
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = _load_torch(path, "weights")
            wrappers = WRAPPERS if isinstance(content, Mapping) else ()
            wrapped = (content.get(name) for name in wrappers)
            content = next((each for each in wrapped if isinstance(each, Mapping)), content)
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{path}: holds no named tensors but {type(content).__name__}")
        tensors = {str(k): v for k, v in content.items() if not str(k).endswith(EXTRA_STATE)}
        for name, value in tensors.items():
            if not isinstance(value, Tensor):
                raise CheckpointError(
                    f"{path}: '{shown(name)}' is no tensor but {type(value).__name__}; the "
                    f"network's tensors are needed, alone or below one of {', '.join(WRAPPERS)}"
                )
            # A view may repeat a few numbers for ever, or reach beyond those that are stored.
            if value.numel() * value.element_size() > size:
                raise UnreadableError(
                    f"tensor '{shown(name)}' has {value.numel()} numbers, more than the file"
                )
        return tensors


def read_shard_index(index: Path) -> dict[str, str]:
    """Return which file beside an index of safetensors holds which tensor."""
    with reading(index, "an index of safetensors", CheckpointError):
        content = parse_json(read_text(index, MAX_INDEX_BYTES))
        files = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(files, dict) or not files:
            raise UnreadableError("is no index of safetensors: it has no 'weight_map'")
        for name in files.values():
            # Nothing but a file beside it: an index may come from anywhere.
            plain = isinstance(name, str) and Path(name).name == name
            if not plain or Path(name).suffix != ".safetensors":
                raise UnreadableError(f"lists '{shown(name)}', expected a .safetensors beside it")
        return files


def _read_shards(index: Path) -> dict[str, Tensor]:
    files = read_shard_index(index)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(files.values())):
        tensors |= read_weights(index.parent / name)
    listed = {name for name in files if not name.endswith(EXTRA_STATE)}
    if absent := sorted(listed - tensors.keys()):
        name, file = shown(absent[0]), shown(files[absent[0]])
        raise CheckpointError(f"{index}: lists '{name}', which {file} does not hold; {AGAIN}")
    return tensors


def is_distributed(path: Path) -> bool:
    """Return whether the folder is a distributed checkpoint (an index and ``.distcp`` files)."""
    return (path / DCP_INDEX).is_file()


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


def load_index(path: Path) -> Any:
    """Read the ``.metadata`` of a distributed checkpoint, as torch's ``Metadata``."""
    from torch.distributed.checkpoint.metadata import Metadata

    allowed: dict[str, Any] = {
        "builtins.getattr": _member,
        "collections.OrderedDict": collections.OrderedDict,
        "torch.Size": torch.Size,
        "torch.serialization._get_layout": _layout,
    }
    for module, names in INDEX_RECORDS.items():
        found = vars(importlib.import_module(module))
        allowed |= {f"{module}.{name}": found[name] for name in names if name in found}
    for name, value in vars(torch).items():
        if isinstance(value, torch.dtype):
            allowed[f"torch.{name}"] = value
    for name in PATHS:
        for module in ("pathlib", "pathlib._local"):
            allowed[f"{module}.{name}"] = pathlib.PurePosixPath
    content = _unpickle(path, allowed, "the index of a distributed checkpoint")
    if not isinstance(content, Metadata):
        raise CheckpointError(f"{path}: holds no index but {type(content).__name__}")
    return content


def load_prompts(path: Path) -> dict[str, Tensor]:
    """Read the published ``*_t5_embeddings.pkl``: a mapping from prompts to tensors.

    The published ones are plain pickles; what ``torch.save`` made of the same mapping is read, too.

    Returns:
        Per prompt (L, D) on the CPU, bit for bit as written.
    """
    what = "a table of prompt embeddings"
    with reading(path, what, CheckpointError, AGAIN):
        budget = MAX_COPIES * check_file(path)
        with open_file(path) as file:
            is_torch = zipfile.is_zipfile(file)
            file.seek(0)
            is_torch = is_torch or file.read(len(TORCH_MAGIC)) == TORCH_MAGIC
        if is_torch:
            content = _load_torch(path, what)
        else:
            allowed = {
                "_codecs.encode": _encode,
                "collections.OrderedDict": collections.OrderedDict,
                "torch._utils._rebuild_tensor_v2": _copies_within(budget),
                "torch.storage._load_from_bytes": _load_storage,
            }
            content = _unpickle(path, allowed, what)
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: holds no table of prompts but {type(content).__name__}")
    prompts = {}
    for prompt, embedding in content.items():
        if not isinstance(prompt, str):
            found = shown(prompt)
            raise CheckpointError(f"{path}: its keys must be prompts, found {found}")
        if not isinstance(embedding, Tensor) or embedding.ndim != 3 or len(embedding) != 1:
            found = getattr(embedding, "shape", type(embedding).__name__)
            raise CheckpointError(
                f"{path}: '{shown(prompt)}' must be a tensor (1, tokens, width), found {found}"
            )
        prompts[prompt] = embedding[0]
    # A view may repeat a few numbers for ever; of a plain pickle none is left.
    if sum(each.numel() * each.element_size() for each in prompts.values()) > budget:
        raise CheckpointError(f"{path}: its tensors come to more than {MAX_COPIES} times its bytes")
    return {prompt: embedding.contiguous() for prompt, embedding in prompts.items()}


def _load_torch(path: Path, what: str) -> Any:
    """Read what ``torch.save`` wrote; mapped into memory where its format allows it."""
    with path.open("rb") as file:
        _check_zip(file, path.stat().st_size)
    try:
        with torch.serialization.safe_globals([io.BytesIO]):
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if forbidden is None:
            raise CheckpointError(f"{path}: cannot be read as {what}; {AGAIN}") from error
        raise CheckpointError(_describe_forbidden(path, forbidden[1], what)) from error


def _check_zip(file: BinaryIO, size: int) -> None:
    """Refuse a zip with something packed in it: torch packs nothing, so it is made to grow."""
    if not zipfile.is_zipfile(file):
        return  # left to its reader
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    packed = next((e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise UnreadableError(f"'{shown(packed)}' in it is packed, which weights never are")
    if (total := sum(entry.file_size for entry in entries)) > size:
        raise UnreadableError(f"its parts claim {total} bytes, it has {size}")


class ForbiddenNameError(pickle.UnpicklingError):
    """A pickle asked for something that is not on the list."""


def _unpickle(path: Path, allowed: Mapping[str, Any], what: str) -> Any:
    """Load a pickle that builds nothing but what is ``allowed``, given by full name."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            full = f"{module}.{name}"
            if full not in allowed:
                raise ForbiddenNameError(full)
            return allowed[full]

    # A pickle can fail in as many ways as a program.
    with reading(path, what, CheckpointError, AGAIN):
        content = read_file(path, MAX_BYTES)
        _check_program(content)
        try:
            return Unpickler(io.BytesIO(content)).load()
        except ForbiddenNameError as error:
            raise CheckpointError(_describe_forbidden(path, str(error), what)) from error


def _describe_forbidden(path: Path, name: str, what: str) -> str:
    return (
        f"{path}: refused, it asks for '{shown(name, 200)}', which {what} cannot need; it may run "
        f"code when loaded the usual way: do not use it"
    )


def _check_program(content: bytes) -> None:
    """Refuse a pickle whose steps ask for more memory or time than its bytes account for.

    A length is believed before the bytes behind it are read, and so is a place in the table of
    what was read: nine bytes can cost gigabytes. Objects that hold one another twice, thirty times
    over, are looked at a thousand million times as soon as one is the key of a mapping.
    """
    mark = (0, 0)
    stack: list[tuple[int, int]] = []  # of each object: how many it holds, how deeply
    memo: dict[int, tuple[int, int]] = {}
    argument: Any
    for steps, (opcode, argument, at) in enumerate(pickletools.genops(io.BytesIO(content))):
        name = opcode.name
        if name == "FRAME" and argument > len(content) - (at or 0):
            raise UnreadableError(
                f"cannot be read: a frame of {argument} bytes at byte {at} of {len(content)}"
            )
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            if not 0 <= argument <= steps:
                raise UnreadableError(
                    f"cannot be read: keeps object {argument} after {steps} steps, at byte {at}"
                )
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(mark)
        elif name == "DUP":
            stack.append(stack[-1])
        else:  # takes from the stack what the step takes, and puts there what it makes of it
            taken: list[tuple[int, int]] = []
            below = list(opcode.stack_before)
            if pickletools.markobject in below:
                below = below[: below.index(pickletools.markobject)]
                while (top := stack.pop()) is not mark:
                    taken.append(top)
            taken += [stack.pop() for _ in below]
            objects = 1 + sum(each[0] for each in taken)
            depth = 1 + max((each[1] for each in taken), default=0)
            stack += [(objects, depth)] * len(opcode.stack_after)
            if stack and (stack[-1][0] > MAX_OBJECTS or stack[-1][1] > MAX_DEPTH):
                raise UnreadableError(
                    f"cannot be read: nests objects more than {MAX_DEPTH} deep, or more than "
                    f"{MAX_OBJECTS} of them, at byte {at}"
                )


# What stands in, in a pickle, for functions that could do more than a file needs.


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
        raise UnreadableError(f"cannot be read: bytes spelt in {encoding}")
    return text.encode("latin1")


def _layout(name: str) -> torch.layout:
    if name != "torch.strided":
        raise UnreadableError(f"cannot be read: a tensor laid out as {name}")
    return torch.strided


def _load_storage(content: bytes) -> Any:
    """Stand in for torch's own function, which would load these bytes with everything allowed."""
    _check_zip(io.BytesIO(content), len(content))
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _copies_within(budget: int) -> Callable[..., Tensor]:
    """Stand in for torch's own function, which would enlarge a storage that is too short.

    Copies the tensors instead, up to ``budget`` bytes.
    """
    left = budget

    def rebuild(
        storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *_: object
    ) -> Tensor:
        nonlocal left
        if not isinstance(storage, torch.storage.TypedStorage):
            raise UnreadableError(f"cannot be read: a tensor made of {type(storage).__name__}")
        numbers = [offset, *size, *stride]
        if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
            raise UnreadableError(f"cannot be read: a tensor of size {size} and stride {stride}")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        stored = storage._untyped_storage.nbytes() // storage.dtype.itemsize
        # More numbers than are stored: a view that repeats them, and a copy that writes them all.
        if 0 in size or last >= stored or math.prod(size) > stored:
            raise UnreadableError(f"cannot be read: a tensor of size {size} in {stored}")
        left -= math.prod(size) * storage.dtype.itemsize
        if left < 0:
            raise UnreadableError(f"its tensors come to more than {MAX_COPIES} times its bytes")
        view = torch.empty(0, dtype=storage.dtype)
        return view.set_(storage._untyped_storage, offset, tuple(size), tuple(stride)).clone()

    return rebuild
