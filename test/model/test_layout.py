"""Pins the frame tables and masks of the released checkpoints: a shifted frame moves an arm."""

from __future__ import annotations

import pytest

from cosmos_policy_ros.model.layout import LAYOUTS, Mode, first_image

ALOHA = LAYOUTS["aloha"]


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
