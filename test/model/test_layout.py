"""Pins the frame tables and masks of the released checkpoints: a shifted frame moves an arm.

And how vectors are spread over a frame and read back, the cut copy above all.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cosmos_policy_ros.core.errors import CheckpointError
from cosmos_policy_ros.model.layout import (
    LAYOUTS,
    Mode,
    extract,
    extract_value,
    first_image,
    inject,
    inject_value,
)

ALOHA = LAYOUTS["aloha"]
REAL = (16, 28, 28)
TINY = (16, 8, 8)


def test_aloha_frames() -> None:
    assert ALOHA.frames == (
        "blank",
        "proprio",
        "left_wrist",
        "right_wrist",
        "primary",
        "action",
        "future_proprio",
        "future_left_wrist",
        "future_right_wrist",
        "future_primary",
        "value",
    )


@pytest.mark.parametrize(
    ("name", "frames", "images", "known", "action"),
    [("aloha", 11, 41, 5, 5), ("robocasa", 11, 41, 5, 5), ("libero", 9, 33, 4, 4)],
)
def test_sizes(name: str, frames: int, images: int, known: int, action: int) -> None:
    layout = LAYOUTS[name]
    assert (layout.count, first_image(layout.count)) == (frames, images)
    assert layout.mask("policy") == (True,) * known + (False,) * (frames - known)
    assert layout.index("action") == action
    assert layout.index("value") == frames - 1


@pytest.mark.parametrize(
    ("mode", "known"),
    [
        ("policy", {0, 1, 2, 3, 4}),
        ("world_model", {0, 1, 2, 3, 4, 5}),
        ("value_sas", {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}),
        ("value_s", {0, 6, 7, 8, 9}),
        ("value_q", {0, 1, 2, 3, 4, 5}),
    ],
)
def test_aloha_masks(mode: Mode, known: set[int]) -> None:
    assert {i for i, bit in enumerate(ALOHA.mask(mode)) if bit} == known


def test_images_behind_a_frame() -> None:
    assert [first_image(i) for i in (0, 1, 2, 5, 9, 10, 11)] == [0, 1, 5, 17, 33, 37, 41]


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="value_s"):
        ALOHA.mask("value")  # type: ignore[arg-type]


def test_frame_is_filled_row_major_without_padding() -> None:
    vector = torch.arange(700.0)
    frame = inject(vector, REAL)
    for channel, row, column in [(0, 0, 0), (0, 0, 27), (0, 1, 0), (1, 0, 0), (15, 27, 27)]:
        flat = channel * 784 + row * 28 + column
        assert frame[channel, row, column] == flat % 700


@pytest.mark.parametrize(
    ("shape", "whole"), [(REAL, 17), (TINY, 1)], ids=["17 whole copies", "1 whole copy"]
)
def test_cut_copy_never_weighs_on_the_mean(shape: tuple[int, int, int], whole: int) -> None:
    vector = torch.linspace(-1, 1, 700)
    frame = inject(vector, shape)
    frame.view(-1)[whole * 700 :] = 1e6
    torch.testing.assert_close(extract(frame, 700), vector)
    frame.view(-1)[whole * 700 - 1] += whole
    assert extract(frame, 700)[-1] == pytest.approx(2.0)


def test_batches_keep_apart() -> None:
    vectors = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    frames = inject(vectors, (2, 2, 2))
    assert frames.shape == (2, 2, 2, 2)
    torch.testing.assert_close(extract(frames, 3), vectors)


def test_half_precision_frames_are_averaged_in_float32() -> None:
    frame = torch.ones(REAL, dtype=torch.bfloat16)
    frame.view(-1)[0] = 1.0078125
    assert extract(frame, 14).dtype == torch.float32
    assert 1 < float(extract(frame, 14)[0]) < 1.0001


def test_value_volume() -> None:
    frames = inject_value(torch.tensor([-1.0, 0.5]), TINY)
    assert frames.shape == (2, *TINY)
    assert frames[1].unique().tolist() == [0.5]
    torch.testing.assert_close(extract_value(frames), torch.tensor([0.0, 0.75]))
    assert float(extract_value(torch.full(TINY, 3.0))) == 1.0


def test_too_small_a_frame_is_refused() -> None:
    with pytest.raises(CheckpointError, match="16x4x4 holds 256 numbers, too few for a vector of"):
        inject(torch.zeros(700), (16, 4, 4))
    with pytest.raises(CheckpointError, match="too few"):
        extract(torch.zeros(16, 4, 4), 700)


@settings(max_examples=40)
@given(length=st.integers(1, 1024), shape=st.sampled_from([REAL, TINY]), seed=st.integers(0, 10))
@example(length=700, shape=REAL, seed=0)
@example(length=14, shape=REAL, seed=0)
def test_any_length_that_fits_comes_back(
    length: int, shape: tuple[int, int, int], seed: int
) -> None:
    vector = torch.randn(length, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(extract(inject(vector, shape), length), vector)
