"""Where a file's cameras are, which is which, and in which order their colours are stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.untrusted import shown
from cosmos_policy_ros.interop import camera_names
from cosmos_policy_ros.interop.foreign_episode import Colours
from cosmos_policy_ros.interop.hdf5_checks import attribute, find, listed, names_in
from cosmos_policy_ros.interop.hdf5_frames import (
    Hdf5Frames,
    JpegFrames,
    RawFrames,
    VideoFrames,
    holds_jpeg,
)

CAMERAS = camera_names.ALOHA
JPEG_SETS = {
    "left_wrist": "wrist_left_images_jpeg",
    "right_wrist": "wrist_right_images_jpeg",
    "primary": "primary_images_jpeg",
}
"""The released trainer's top-level data set by a camera's role."""
IMAGES, VIDEO_PATHS = "observations/images", "observations/video_paths"
COMPRESS_LEN, COMPRESS = "compress_len", "compress"
"""Data set and attribute that ALOHA's recorders write beside padded rows of JPEG."""


def find_cameras(
    file: h5py.File,
    size: int,
    given: Mapping[str, str],
    colours: Colours | None,
    notes: list[str],
) -> dict[str, Hdf5Frames]:
    """Find the images where the released trainer looks for them, in its order.

    Args:
        file: open.
        size: of the file [bytes].
        given: the file's names of cameras by role, for those that are not known by their names.
            The released trainer's own data sets need none.
        colours: see :func:`hdf5_layout.open_hdf5`.
        notes: gets what was chosen, and what was left.

    Raises:
        RolloutError: there are no images, a role has no camera or several, a data set holds no
            images, or the order of its colours is not known.
        UnreadableError: see :func:`hdf5_checks.find`.
    """
    if any(find(file, key) is not None for key in JPEG_SETS.values()):
        frames = _jpeg_sets(file, size, swapped=colours == "bgr")
    else:
        frames = _group(file, size, given, colours, notes)
    notes += _swapped_note(frames.values(), colours)
    if len({type(each) for each in frames.values()}) > 1:
        notes.append("raw images became JPEG of quality 95, as the other cameras' are JPEG")
    return frames


def _jpeg_sets(file: h5py.File, size: int, *, swapped: bool) -> dict[str, Hdf5Frames]:
    frames: dict[str, Hdf5Frames] = {}
    for role, key in JPEG_SETS.items():
        where = f"{file.filename}: /{key}"
        frames[role] = JpegFrames(_dataset(file, "", key), where, size, swapped=swapped)
    return frames


def _group(
    file: h5py.File,
    size: int,
    given: Mapping[str, str],
    colours: Colours | None,
    notes: list[str],
) -> dict[str, Hdf5Frames]:
    """Return the images of a group that has one object per camera."""
    group = next((key for key in (IMAGES, VIDEO_PATHS) if find(file, key) is not None), "")
    if not group:
        raise RolloutError(
            f"{file.filename}: has no images: none of /{JPEG_SETS['primary']}, /{IMAGES} and "
            f"/{VIDEO_PATHS} is there"
        )
    found = camera_names.assign(listed(find(file, group)), given, f"{file.filename}: /{group}")
    notes += found.notes
    frames: dict[str, Hdf5Frames] = {}
    for role, name in found.names.items():
        dataset = _dataset(file, group, name)
        where = f"{file.filename}: /{group}/{shown(name)}"
        if group == VIDEO_PATHS:
            frames[role] = VideoFrames(_video_path(file, dataset, where), where, colours == "bgr")
            continue
        swapped = _swapped(file, dataset, where, colours)
        if holds_jpeg(dataset):
            frames[role] = JpegFrames(dataset, where, size, swapped=swapped)
        else:
            frames[role] = RawFrames(dataset, where, swapped=swapped)
    return frames


def _dataset(file: h5py.File, group: str, name: str) -> h5py.Dataset:
    key = f"{group}/{name}" if group else name
    dataset = find(file, key)
    if not isinstance(dataset, h5py.Dataset):
        inside = find(file, group) if group else file
        raise RolloutError(
            f"{file.filename}: /{shown(key)}: is not there; in its place there is "
            f"{names_in(inside)}"
        )
    return dataset


def _swapped(file: h5py.File, dataset: h5py.Dataset, where: str, colours: Colours | None) -> bool:
    """Return whether images have red and blue exchanged, by an operator's word or the layout.

    ALOHA's recorders hand RGB images to an encoder that takes them for BGR. What they write is
    known by its marks; others' JPEG may be either. Raw images are in the cameras' order, RGB.
    """
    if colours is not None:
        return colours == "bgr"
    if not holds_jpeg(dataset):
        return False
    compress = str(attribute(file, COMPRESS)) if COMPRESS in file.attrs else ""
    recorder = find(file, COMPRESS_LEN) is not None or compress in ("True", "1")
    if recorder and dataset.ndim == 2:
        return True
    raise RolloutError(
        f"{where}: is JPEG of a tool that is not known here, and so is the order of its colours; "
        f"look at one image in a viewer, then give --colours rgb if its colours are right, or "
        f"--colours bgr if red and blue are exchanged"
    )


def _swapped_note(frames: Iterable[Hdf5Frames], colours: Colours | None) -> list[str]:
    swapped = [each for each in frames if each.swapped]
    by = "as given" if colours else "as ALOHA's recorders store them"
    anew = ", JPEG anew at quality 95" if any(isinstance(f, JpegFrames) for f in swapped) else ""
    return [f"red and blue exchanged back ({by}){anew}"] if swapped else []


def _video_path(file: h5py.File, dataset: h5py.Dataset, where: str) -> Path:
    """Return the path of a video, which the data set names relative to the file."""
    text = h5py.check_string_dtype(dataset.dtype) is not None or dataset.dtype.kind == "S"
    value = dataset[()] if dataset.shape == () and text else None
    name = value.decode(errors="replace") if isinstance(value, bytes) else value
    if not isinstance(name, str) or not name or "\0" in name:
        raise RolloutError(f"{where}: holds {shown(value)}, expected the name of a video")
    folder = Path(file.filename).resolve().parent
    if not (folder / name).resolve().is_relative_to(folder):
        raise RolloutError(
            f"{where}: names {shown(name)}, which is not in the file's own folder; copy the video "
            f"beside it and name it so"
        )
    return Path(file.filename).parent / name
