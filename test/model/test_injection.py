"""Pins how vectors are spread over a latent frame and read back, the cut copy above all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_policy_ros.core.errors import CheckpointError
from cosmos_policy_ros.model.layout import extract, extract_value, inject, inject_value

REAL = (16, 28, 28)
TINY = (16, 8, 8)


@pytest.mark.parametrize("shape", [REAL, TINY])
@pytest.mark.parametrize("length", [700, 14, 112, 224, 9])
def test_round_trip(length: int, shape: tuple[int, int, int]) -> None:
    vector = torch.linspace(-1, 1, length)
    torch.testing.assert_close(extract(inject(vector, shape), length), vector)


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


@settings(deadline=None)  # the first call warms torch up
@given(length=st.integers(1, 1024), seed=st.integers(0, 10))
def test_any_length_that_fits_comes_back(length: int, seed: int) -> None:
    vector = torch.randn(length, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(extract(inject(vector, TINY), length), vector)
