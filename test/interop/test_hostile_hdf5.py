"""Pins that an HDF5 file brings nothing of another file into a bag, and no more work than it is."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers.hdf5 import CAMERAS, ROLLOUT, jpegs, motion, random_images, write_hdf5
from helpers.recordings import write_recording

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.interop import hdf5_checks, hdf5_layout
from cosmos_policy_ros.interop.hdf5_layout import open_hdf5

ROWS = 24
Change = Callable[[h5py.File, Path], None]
CAM = "observations/images/cam_high"
NUMBERS = ("action", "observations/qpos", "observations/qvel")


def other(folder: Path) -> Path:
    """Write the file that must not be read: as it stands, it is a sound episode's."""
    path = folder / "other.hdf5"
    with h5py.File(path, "w") as file:
        file["action"] = motion(ROWS, 9)
        file["pixels"] = random_images(ROWS, CAMERAS[0])
        file.create_group("images")
        for camera in CAMERAS:
            file[f"images/{camera}"] = random_images(ROWS, camera)
    (folder / "numbers").write_bytes(motion(ROWS, 9).tobytes())
    (folder / "pixels").write_bytes(random_images(ROWS, CAMERAS[0]).tobytes())
    return path


def external_storage(key: str, name: str) -> Change:
    def change(file: h5py.File, folder: Path) -> None:
        shape, dtype = file[key].shape, file[key].dtype
        del file[key]
        size = int(np.prod(shape)) * dtype.itemsize
        file.create_dataset(key, shape, dtype, external=[(str(folder / name), 0, size)])

    return change


def external_link(key: str, target: str) -> Change:
    def change(file: h5py.File, folder: Path) -> None:
        del file[key]
        file[key] = h5py.ExternalLink(str(folder / "other.hdf5"), target)

    return change


def virtual(key: str, target: str) -> Change:
    def change(file: h5py.File, folder: Path) -> None:
        shape, dtype = file[key].shape, file[key].dtype
        del file[key]
        layout = h5py.VirtualLayout(shape, dtype)
        layout[:] = h5py.VirtualSource(str(folder / "other.hdf5"), target, shape)
        file.create_virtual_dataset(key, layout)

    return change


def soft_over_external(file: h5py.File, folder: Path) -> None:
    file["hop"] = h5py.ExternalLink(str(folder / "other.hdf5"), "/")
    del file["action"]
    file["action"] = h5py.SoftLink("/hop/action")


def soft(file: h5py.File, _: Path) -> None:
    file["kept"] = file["action"]
    del file["action"]
    file["action"] = h5py.SoftLink("/kept")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        *[
            (external_storage(key, "numbers"), f"/{key}: keeps its data in another")
            for key in NUMBERS
        ],
        (external_storage(CAM, "pixels"), "keeps its data in another file"),
        *[(external_link(key, "/action"), f"/{key}: is a link to /action in") for key in NUMBERS],
        (external_link(CAM, "/pixels"), "is a link to /pixels in"),
        (external_link("observations/images", "/images"), "is a link to /images in"),
        *[(virtual(key, "action"), f"/{key}: is a virtual data set") for key in NUMBERS],
        (virtual(CAM, "pixels"), "is a virtual data set"),
        (soft_over_external, "/action: is a link to /hop/action"),
        (soft, "/action: is a link to /kept"),
    ],
)
def test_no_other_file_is_read(tmp_path: Path, change: Change, told: str) -> None:
    other(tmp_path)
    path = write_hdf5(tmp_path / "e.hdf5", rows=ROWS, change=lambda file: change(file, tmp_path))
    with pytest.raises(RolloutError, match=rf"e\.hdf5: .*{told}"), open_hdf5(path):
        pass


def test_a_link_that_no_episode_needs_is_not_followed(tmp_path: Path) -> None:
    other(tmp_path)

    def change(file: h5py.File) -> None:
        file["elsewhere"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/action")
        file["dangling"] = h5py.SoftLink("/nowhere")
        file["observations/back"] = file["/"]  # a cycle of hard links

    with open_hdf5(write_hdf5(tmp_path / "e.hdf5", change=change)) as source:
        assert len(source.action) == 24


def with_data(key: str, shape: tuple[int, ...], **kept: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        dtype = file[key].dtype
        del file[key]
        file.create_dataset(key, shape, dtype, **kept)

    return change


def deflated(content: bytes, filters: tuple[int, ...] = (h5py.h5z.FILTER_DEFLATE,)) -> Any:
    """Replace the action by one chunk with these bytes in it."""

    def change(file: h5py.File) -> None:
        del file["action"]
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((ROWS, 14))
        for each in filters:
            plist.set_filter(each, h5py.h5z.FLAG_OPTIONAL, (6,))
        space = h5py.h5s.create_simple((ROWS, 14))
        made = h5py.h5d.create(file.id, b"action", h5py.h5t.IEEE_F32LE, space, plist)
        made.write_direct_chunk((0, 0), content)

    return change


def rows_in_one_chunk(file: h5py.File) -> None:
    """Make images of which one takes all of the others to be read, as often as there are rows."""
    del file[CAM]
    kept = {"chunks": (24, 8192, 1, 3), "compression": "gzip"}
    black = zlib.compress(bytes(24 * 8192 * 3))
    made = file.create_dataset(CAM, (24, 8192, 500, 3), np.uint8, **kept)
    for column in range(500):
        made.id.write_direct_chunk((0, 0, column, 0), black)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (with_data("action", (10**9, 14)), "/action: has 1000000000 rows, at most"),
        (with_data("action", (50_000, 14)), r"/action: claims \d+ bytes, 0 of it"),
        (with_data("action", (2**40, 2**20), chunks=(1, 1)), "/action: has"),
        (with_data(CAM, (24, 60_000, 60_000, 3), chunks=(1, 64, 64, 3)), "claims"),
        (
            with_data(CAM, (24, 8192, 8192, 3), chunks=(1, 8192, 8192, 3), compression="gzip"),
            "claims",
        ),
        (rows_in_one_chunk, r"has chunks \(24, 8192, 1, 3\)"),
        (deflated(zlib.compress(bytes(50_000_000))), "a chunk is larger unpacked than the"),
        (deflated(b"x" * 2000), "error"),
        (deflated(bytes(2000), (h5py.h5z.FILTER_DEFLATE,) * 2), "deflated more than once"),
        (deflated(bytes(2000), (32004,)), r"packed by lz4 \(32004\), which needs a plugin"),
    ],
)
def test_a_claim_is_held_against_what_is_there(
    tmp_path: Path, change: Callable[[h5py.File], None], told: str
) -> None:
    path = write_hdf5(tmp_path / "e.hdf5", rows=ROWS, change=change)
    with pytest.raises(RolloutError, match=rf"e\.hdf5: .*{told}"), open_hdf5(path):
        pass


def test_honest_compression_is_read(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        for key, packed in ((CAM, "gzip"), ("action", "lzf"), ("observations/qpos", "gzip")):
            content = file[key][()]
            del file[key]
            file.create_dataset(
                key, data=content, compression=packed, shuffle=True, fletcher32=True, chunks=True
            )

    path = write_hdf5(tmp_path / "e.hdf5", change=change)
    with open_hdf5(path) as source:
        shown = list(source.frames["primary"].every(5))
        assert np.array_equal(source.action, motion(24, 1))
    assert np.array_equal(shown, random_images(24, CAMERAS[0])[::5])


def test_one_image_that_a_thousand_entries_name_is_counted_each_time(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "e.hdf5", "jpeg", attributes=ROLLOUT)
    with open_hdf5(path) as source:
        frames = source.frames["primary"]
        size = sum(len(image) for image in frames.every(1))
        object.__setattr__(frames, "most", size - 1)
        with pytest.raises(RolloutError, match="come to more than the"):
            list(frames.every(1))


def jpeg_of(height: int, width: int, scans: int = 1) -> bytes:
    """Return a JPEG whose head claims a size, and that passes over it so many times."""
    jpeg = jpegs(random_images(1, CAMERAS[0]))[0]
    at = jpeg.index(b"\xff\xc0")
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return jpeg[: at + 5] + size + jpeg[at + 9 : -2] + b"\xff\xda\x00\x02" * (scans - 1) + jpeg[-2:]


@pytest.mark.parametrize(
    ("jpeg", "told"),
    [
        (jpeg_of(65_000, 65_000), "a JPEG of 65000x65000 pixels"),
        (jpeg_of(24, 32, 500), "in 500 scans"),
    ],
)
def test_a_jpeg_that_claims_too_much_is_not_decoded(tmp_path: Path, jpeg: bytes, told: str) -> None:
    def change(file: h5py.File) -> None:
        file["primary_images_jpeg"][3] = np.frombuffer(jpeg, np.uint8)

    path = write_hdf5(tmp_path / "e.hdf5", "jpeg", attributes=ROLLOUT, change=change)
    with open_hdf5(path) as source, pytest.raises(RolloutError, match=f"image 3.*{told}"):
        list(source.frames["primary"].every(1))


@pytest.mark.parametrize("images", ["padded", "strings", "scattered"])
@pytest.mark.parametrize(
    ("jpeg", "told"),
    [
        (jpeg_of(65_000, 65_000), "a JPEG of 65000x65000 pixels"),
        (jpeg_of(24, 32, 500), "in 500 scans"),
        (b"\x89PNG\r\n", "is no whole JPEG"),
        (b"", "is no whole JPEG"),
        (b"\xff\xd8" + b"\xff" * 300, "is no whole JPEG"),
        (b"\xff\xd8" + b"\xff\xe0\xff\xff" * 70, "is no whole JPEG"),
    ],
)
def test_a_jpeg_of_any_recorder_is_held_to_the_same(
    tmp_path: Path, images: str, jpeg: bytes, told: str
) -> None:
    made = {camera: jpegs(random_images(ROWS, camera)) for camera in CAMERAS}
    made["cam_high"][3] = jpeg
    path = write_recording(tmp_path / "e.hdf5", images, rows=ROWS, jpegs=made)
    raised = pytest.raises(RolloutError, match=f"cam_high: image 3.*{told}")
    with open_hdf5(path, colours="rgb") as source, raised:
        list(source.frames["primary"].every(1))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: f.create_dataset(CAM, (ROWS, 10**9), np.uint8), "claims 24000000000 bytes"),
        (lambda f: f.create_dataset(CAM, (ROWS,), "S1000000"), "claims 24000000 bytes"),
        (
            lambda f: f.create_dataset(CAM, (ROWS, 2**26), np.uint8, chunks=(ROWS, 2**26)),
            "claims",
        ),
        (lambda f: f.create_dataset(CAM, data=np.zeros((ROWS, 99), np.int32)), "is int32"),
        (lambda f: f.create_dataset(CAM, data=np.zeros((ROWS, 0), np.uint8)), "is uint8"),
        (
            lambda f: f.create_dataset(CAM, (1,), h5py.vlen_dtype(np.float64)).__setitem__(
                0, np.zeros(3)
            ),
            "is object",
        ),
        (lambda f: f.create_dataset(CAM, data=[f.ref] * ROWS, dtype=h5py.ref_dtype), "is object"),
        (lambda f: f.create_group(CAM), "cam_high: is not there"),
        (lambda f: f.__setitem__(CAM, h5py.SoftLink("/action")), "is a link to /action"),
    ],
)
def test_jpeg_rows_claim_no_more_than_is_there(
    tmp_path: Path, change: Callable[[h5py.File], Any], told: str
) -> None:
    def spoil(file: h5py.File) -> None:
        file.attrs["compress"] = True
        del file[CAM]
        change(file)

    path = write_recording(tmp_path / "e.hdf5", "padded", rows=ROWS, change=spoil)
    with pytest.raises(RolloutError, match=told), open_hdf5(path):
        pass


def test_names_that_are_no_text_are_shown_and_read(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        images, observations = file["observations/images"], file["observations"]
        for name in (b"\xff\x1b[31m", b"cam_l\xe9w"):
            h5py.h5o.link(images["cam_high"].id, images.id, name)
        observations.id.links.create_soft(b"\xfe", b"/nowhere")

    with open_hdf5(write_hdf5(tmp_path / "e.hdf5", change=change)) as source:
        noted = " ".join(source.notes)
    assert "cameras" in noted
    assert "\\x1b[31m" in noted
    assert noted.isprintable()


@pytest.mark.parametrize("name", ["../outside.mp4", "/etc/hostname", "sub/../../outside.mp4", ".."])
def test_a_video_elsewhere_is_not_read(tmp_path: Path, name: str) -> None:
    def change(file: h5py.File) -> None:
        del file["observations/video_paths/cam_high"]
        file["observations/video_paths/cam_high"] = name

    path = write_hdf5(tmp_path / "a/e.hdf5", "video", change=change)
    (tmp_path / "outside.mp4").write_bytes((tmp_path / "a/e_cam_high.mp4").read_bytes())
    with pytest.raises(RolloutError, match="not in the file's own folder"), open_hdf5(path):
        pass


@pytest.mark.parametrize("text", ["ffconcat version 1.0\nfile other.mp4\n", "#EXTM3U\nother.mp4\n"])
def test_a_list_of_other_videos_is_no_video(tmp_path: Path, text: str) -> None:
    path = write_hdf5(tmp_path / "e.hdf5", "video")
    video = tmp_path / "e_cam_high.mp4"
    video.rename(tmp_path / "other.mp4")
    video.write_text(text)
    with pytest.raises(RolloutError, match="does not begin like an MP4"), open_hdf5(path):
        pass


def test_an_attribute_that_is_no_text_or_number_is_told(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        file.attrs["task_description"] = file["action"].ref

    path = write_hdf5(tmp_path / "e.hdf5", change=change)
    told = pytest.raises(RolloutError, match=r"task_description: .*expected a text or number")
    with told, open_hdf5(path):
        pass


def test_a_file_on_which_the_library_loops_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by test_fuzz: a damaged heap of JPEG files, which HDF5 1.14 walks for ever."""
    monkeypatch.setattr(hdf5_checks, "BASE_SECONDS", 1)
    monkeypatch.setattr(hdf5_layout, "try_apart", hdf5_checks.try_apart)
    path = Path(__file__).parent / "data/library_loops.hdf5"
    with pytest.raises(RolloutError, match=r"library_loops\.hdf5: "), open_hdf5(path) as source:
        for frames in source.frames.values():
            list(frames.every(1))
