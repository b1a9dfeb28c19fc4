"""Pins min-max normalisation, and that a wrong statistics file is refused by name, not by NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosmos_policy_ros.core.errors import CheckpointError
from cosmos_policy_ros.model.statistics import (
    KEYS,
    Range,
    constant_dimensions,
    describe_unused,
    load_statistics,
    measure,
    write_statistics,
)


def content() -> dict[str, Any]:
    return {key: [1.0, 2.0] if key.endswith("max") else [0.0, -2.0] for key in KEYS}


def write(folder: Path, stats: object) -> Path:
    path = folder / "dataset_statistics.json"
    path.write_text(json.dumps(stats))
    return path


def test_reads_ranges(tmp_path: Path) -> None:
    statistics = load_statistics(write(tmp_path, content()), 2, 2)
    np.testing.assert_array_equal(statistics.actions.low, [0, -2])
    np.testing.assert_array_equal(statistics.proprio.high, [1, 2])


def test_ends_map_to_one_and_nothing_is_clipped() -> None:
    limits = Range(np.array([0.0, -2.0]), np.array([1.0, 2.0]))
    values = np.array([[0.0, -2.0], [1.0, 2.0], [0.5, 0.0], [2.0, 6.0]])
    expected = np.array([[-1, -1], [1, 1], [0, 0], [3, 3]])
    np.testing.assert_allclose(limits.normalise(values), expected)
    np.testing.assert_allclose(limits.unnormalise(expected), values)


def test_constant_dimension_stays_constant() -> None:
    limits = Range(np.array([0.0, 0.7]), np.array([1.0, 0.7 + 1e-12]))
    normal = limits.normalise(np.array([0.25, 0.71]))
    np.testing.assert_allclose(normal, [-0.5, 0.0])
    np.testing.assert_allclose(limits.unnormalise(np.array([-0.5, 5.0])), [0.25, 0.7])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions_min": None}, "'actions_min' has shape"),
        ({"actions_min": "x"}, "'actions_min' is not a list of numbers"),
        ({"proprio_max": [1.0]}, r"'proprio_max' has shape \(1,\).*asks for 2 numbers"),
        ({"proprio_std": [1.0, float("nan")]}, r"'proprio_std'\[1\] is nan"),
        ({"actions_max": [1.0, -3.0]}, r"'actions_max'\[1\] = -3.0 lies below"),
    ],
)
def test_wrong_content_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path, content() | change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_statistics(path, 2, 2)
    assert str(path) in str(caught.value)


def test_missing_key_is_named(tmp_path: Path) -> None:
    stats = content()
    del stats["proprio_median"]
    with pytest.raises(CheckpointError, match=r"key 'proprio_median' is missing$"):
        load_statistics(write(tmp_path, stats), 2, 2)
    stats["propio_median"] = [0.0, 0.0]
    with pytest.raises(CheckpointError, match="'proprio_median' is missing; is it 'propio_median'"):
        load_statistics(write(tmp_path, stats), 2, 2)


def test_what_a_file_has_besides_is_told_and_not_refused(tmp_path: Path) -> None:
    """Files of fine-tunings by others have quantiles and counts, too."""
    others = {"actions_q01": [0.0, 0.0], "num_transitions": 7, "proprio_q01": None}
    statistics = load_statistics(write(tmp_path, content() | others), 2, 2)
    assert statistics.equals(load_statistics(write(tmp_path, content()), 2, 2))
    assert statistics.unused == tuple(others)
    assert describe_unused(statistics) == (
        "the statistics have entries that nothing reads: actions_q01, num_transitions, proprio_q01"
    )
    many = load_statistics(write(tmp_path, content() | {f"a{i}": 0 for i in range(9)}), 2, 2)
    assert describe_unused(many).endswith("a0, a1, a2, a3, a4 and 4 more")


@pytest.mark.parametrize("text", ["{", "[1, 2]", ""])
def test_not_a_mapping(tmp_path: Path, text: str) -> None:
    path = tmp_path / "dataset_statistics.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"dataset_statistics\.json: "):
        load_statistics(path, 2, 2)


def test_measured_ranges_are_read_back_and_what_never_moved_is_named(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    actions, proprio = random.normal(size=(50, 14)), random.normal(size=(60, 14))
    actions[:, 3] = 0.25
    path = tmp_path / "dataset_statistics.json"
    write_statistics(path, measure(actions, proprio))
    statistics = load_statistics(path, 14, 14)
    np.testing.assert_array_equal(statistics.proprio.high, proprio.max(axis=0))
    assert constant_dimensions(statistics) == ["actions[3]"]
    normalised = statistics.actions.normalise(actions)
    assert not normalised[:, 3].any()
    assert np.isfinite(normalised).all()
    content = json.loads(path.read_text())
    np.testing.assert_allclose(content["actions_median"], np.median(actions, axis=0))
    np.testing.assert_allclose(content["actions_std"], actions.std(axis=0))


@pytest.mark.parametrize(
    "content", ["[" * 200_000, '{"a":' * 200_000, "\udcff", '{"actions_min": [1' + "0" * 400 + "]}"]
)
def test_a_file_that_nests_or_claims_too_much_is_one_error(tmp_path: Path, content: str) -> None:
    """A RecursionError came out before."""
    path = tmp_path / "dataset_statistics.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"statistics\.json: "):
        load_statistics(path, 14, 14)
