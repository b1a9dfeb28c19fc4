"""What an HDF5 file may not do: lead its reader to other files, or to more work than it holds.

The format can name other files as the place of a data set, of a part of one, or of a whole branch,
and its library follows: an import would copy whatever they hold into a bag. A few bytes can claim
terabytes, and a deflated chunk may grow a thousandfold past its claim. So every object is checked
by its links and its description before it is read.
"""

from __future__ import annotations

import math
import os
import resource
import subprocess
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import h5py

from cosmos_policy_ros.core.untrusted import UnreadableError, shown
from cosmos_policy_ros.interop.row_episode import MAX_ROWS

MAX_CHUNK_BYTES = 64 << 20
"""A chunk's size unpacked; it is unpacked whole."""
MAX_BLOCK_BYTES = 256 << 20
"""Size of all entries that chunks of one data set hold side by side; they are read together."""
MAX_RATIO = 1100
"""Bytes of a data set per byte in the file; deflate cannot do better than 1032."""
MAX_ATTRIBUTE_BYTES = 1 << 16
"""An attribute's size; HDF5's own limit for those kept in the head of an object."""
BASE_SECONDS, BYTES_PER_SECOND = 5, 2_000_000
"""Processor time [s] that a trial may take, plus one for so many bytes of the file; a sound file
takes a tenth of that."""
TRIAL_MEMORY = 8 << 30
"""A trial's address space; the libraries alone take one thousand million bytes."""
MAX_NAMES = 256
"""Objects of a group that are looked at."""
MOST_NAMED = 12  # of what a group holds, in a message
_PLUGINS = {
    305: "LZO",
    307: "bzip2",
    32000: "LZF",
    32001: "blosc",
    32004: "lz4",
    32008: "bitshuffle",
    32013: "zfp",
    32015: "zstd",
    32017: "SZ",
    32024: "SZ3",
    32026: "blosc2",
}
_FILTERS = {
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_SHUFFLE,
    h5py.h5z.FILTER_FLETCHER32,
    h5py.h5z.FILTER_SZIP,
    h5py.h5z.FILTER_NBIT,
    h5py.h5z.FILTER_SCALEOFFSET,
    h5py.h5z.FILTER_LZF,
}


def find(group: h5py.Group, key: str) -> h5py.Dataset | h5py.Group | None:
    """Return an object by its path below a group, or None when it is not there.

    Raises:
        UnreadableError: a link on the way leads elsewhere, or the object keeps its data elsewhere,
            claims more than the file can hold, or needs a plugin to be read.
    """
    found = reach(group, key)
    if isinstance(found, h5py.Dataset):
        _check(found, shown(key))
    return found


def reach(group: h5py.Group, key: str) -> h5py.Dataset | h5py.Group | None:
    """Return an object as :func:`find` does, to look at its description only: see if it is wanted.

    Its data is not checked, which for a packed one takes as long as to read it.

    Raises:
        UnreadableError: a link on the way leads elsewhere.
    """
    found: Any = group
    for name in key.split("/"):
        link = name.encode(errors="surrogateescape")  # h5py's word for what is no UTF-8
        # By the links themselves: to ask whether a name is in a group already follows it.
        if not isinstance(found, h5py.Group) or not found.id.links.exists(link):
            return None
        if found.id.links.get_info(link).type != h5py.h5l.TYPE_HARD:
            target = found.id.links.get_val(link)
            parts = reversed(target) if isinstance(target, tuple) else (target,)
            raise UnreadableError(
                f"/{shown(key)}: is a link to {' in '.join(map(_shown, parts))}, which is not "
                f"followed: an episode's file holds its own data"
            )
        found = found[name]
    return found


def listed(group: Any) -> list[str]:
    """Return the names in a group; none where it is no group, and at most :data:`MAX_NAMES`."""
    return list(islice(group, MAX_NAMES)) if isinstance(group, h5py.Group) else []


def try_apart(path: Path, size: int, keys: Iterable[str], attributes: Iterable[str]) -> None:
    """Read a file once in a process of its own, since HDF5's library may loop or crash on it.

    What the library does with damaged bytes cannot be ended from within this process.

    Args:
        path: of the file.
        size: of the file [bytes].
        keys: the objects that will be read; "group/*" and "group/*/name" are those of all of a
            group's members.
        attributes: those of the root that will be read.

    Raises:
        UnreadableError: that process crashed, or took more time than such a file can need.
    """
    seconds = BASE_SECONDS + size // BYTES_PER_SECOND
    command = f"from {__name__} import trial; trial()"
    arguments = [str(seconds), str(path), ",".join(keys), ",".join(attributes)]
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if done.returncode < 0:
        raise UnreadableError(
            f"cannot be read as HDF5: its library crashed on it, or was not done after {seconds} s "
            f"(signal {-done.returncode})"
        )


def trial() -> None:
    """Read everything that an import reads; the import itself reports what is wrong with it."""
    seconds, path, keys, attributes = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 1))
    resource.setrlimit(resource.RLIMIT_AS, (TRIAL_MEMORY, TRIAL_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(Exception), h5py.File(path, "r") as file:
        for name in [*attributes.split(","), *islice(file.attrs, MAX_NAMES)]:
            with suppress(Exception):
                attribute(file, name)
        for key in [*keys.split(","), *_below(file)]:
            for each in _matching(file, key):
                with suppress(Exception):
                    _read_all(find(file, each))


def _matching(file: h5py.File, key: str) -> Iterator[str]:
    """Yield a key, or where its second part is "*" that of every object of its group."""
    group, star, rest = key.partition("/*")
    if not star:
        yield key
        return
    with suppress(Exception):
        for name in find(file, group) or ():
            yield f"{group}/{name}{rest}"


def _below(file: h5py.File) -> Iterator[str]:
    """Yield what an import may look at besides, whose names are not known before."""
    for group in ("", "observations", "observations/images", "observations/video_paths"):
        with suppress(Exception):
            for name in listed(find(file, group) if group else file):
                yield f"{group}/{name}" if group else name


def _read_all(found: Any) -> None:
    names_in(found)
    if not isinstance(found, h5py.Dataset):
        return
    if not found.shape:
        found[()]
        return
    rows = found.chunks[0] if found.chunks and found.dtype.kind != "O" else 1
    if found.ndim <= 1 and found.dtype.kind in "fiub":
        rows = found.shape[0]
    for first in range(0, found.shape[0], rows):
        with suppress(Exception):
            found[first : first + rows]


def names_in(group: Any) -> str:
    """Return what a group holds, for a message."""
    names = list(islice(group, MOST_NAMED + 1)) if isinstance(group, h5py.Group) else []
    texts = [f"/{shown(name)}" for name in names[:MOST_NAMED]]
    return ", ".join([*texts, "…"] if len(names) > MOST_NAMED else texts) or "nothing"


def attribute(file: h5py.File, key: str) -> Any:
    """Return an attribute of the root: one number or one text. Raises UnreadableError."""
    kept = file.attrs.get_id(key)
    size, dtype = math.prod(kept.shape or (1,)) * kept.dtype.itemsize, kept.dtype
    text = h5py.check_string_dtype(dtype)
    if size > MAX_ATTRIBUTE_BYTES or (text is None and dtype.kind not in "SUbiuf"):
        raise UnreadableError(
            f"attribute {key}: is {dtype} {kept.shape}, expected a text or number"
        )
    return file.attrs[key]


def _check(dataset: h5py.Dataset, key: str) -> None:
    plist = dataset.id.get_create_plist()
    if plist.get_external_count():
        raise UnreadableError(
            f"/{key}: keeps its data in another file, {_shown(plist.get_external(0)[0])}, "
            f"which is not read: an episode's file holds its own data"
        )
    if dataset.is_virtual:
        raise UnreadableError(
            f"/{key}: is a virtual data set, made of others that may be in other files; copy it "
            f"into a plain one"
        )
    filters = [plist.get_filter(index) for index in range(plist.get_nfilters())]
    for number, _, _, name in filters:
        if number not in _FILTERS or not h5py.h5z.filter_avail(number):
            called = _PLUGINS.get(number) or _shown(name).partition(";")[0] or "filter"
            raise UnreadableError(
                f"/{key}: is packed by {called} ({number}), which needs a plugin that is not here; "
                f"repack the file where it is, with h5repack -f GZIP=4 OLD NEW"
            )
    if len(dataset.shape or ()) and dataset.shape[0] > MAX_ROWS:
        raise UnreadableError(f"/{key}: has {dataset.shape[0]} rows, at most {MAX_ROWS} are read")
    claimed = math.prod(dataset.shape or (1,)) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    if claimed > stored * (MAX_RATIO if filters else 1):
        raise UnreadableError(f"/{key}: claims {claimed} bytes, {stored} of it are in the file")
    if dataset.chunks:
        _check_chunks(dataset, key, [number for number, *_ in filters])


def _check_chunks(dataset: h5py.Dataset, key: str, filters: list[int]) -> None:
    bytes_each = math.prod(dataset.chunks) * dataset.dtype.itemsize
    # Entries are read by whole chunks; those beside each other along the rest come with them.
    rows = min(dataset.chunks[0], dataset.shape[0])
    together = rows * math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
    if bytes_each > MAX_CHUNK_BYTES or together > MAX_BLOCK_BYTES:
        raise UnreadableError(
            f"/{key}: has chunks {dataset.chunks} of {bytes_each} bytes, at most {MAX_CHUNK_BYTES} "
            f"and rows of {MAX_BLOCK_BYTES} together are read; write it with one row per chunk"
        )
    deflated = [i for i, number in enumerate(filters) if number == h5py.h5z.FILTER_DEFLATE]
    if not deflated:
        return
    # The library lets a deflated chunk grow as it likes; what it is made of is unpacked before it.
    if deflated != [len(filters) - 1 - (filters[-1] == h5py.h5z.FILTER_FLETCHER32)]:
        raise UnreadableError(f"/{key}: is deflated more than once, or before another filter")
    places: list[Any] = []
    dataset.id.chunk_iter(lambda chunk: places.append(chunk.chunk_offset))
    for place in places:
        skipped, data = dataset.id.read_direct_chunk(place)
        if skipped >> deflated[0] & 1:
            continue
        if len(zlib.decompressobj().decompress(data, bytes_each + 1)) > bytes_each:
            raise UnreadableError(f"/{key}: a chunk is larger unpacked than the {bytes_each} bytes")


def _shown(name: Any) -> str:
    return shown(name.decode(errors="replace") if isinstance(name, bytes) else str(name))
