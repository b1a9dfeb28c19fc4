"""From many predicted values to one choice: the rules of best-of-N search.

All values are success estimates in [0, 1]. Facts: Cosmos Policy paper, planning; the released code
does otherwise where a failing majority is concerned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.model.config import Numerics

Aggregation = Literal["majority_mean", "average", "lcb", "success_vote"]

SUCCESS = 0.05  # a value above it counts as a prediction of success


def aggregate(values: Sequence[float], scheme: Aggregation, numerics: Numerics) -> float:
    """Reduce the values that an ensemble gave one candidate to one.

    - majority_mean: see :func:`majority_mean`.
    - average: their mean.
    - lcb: their mean less one (unbiased) standard deviation, a lower confidence bound.
    - success_vote: the share of them that predicts success.

    Returns:
        A value in [0, 1].

    Raises:
        ValueError: no values, or a scheme that there is not; one value has no standard deviation.
    """
    # In float32, as released: 0.05 lies on the other side of itself in float64.
    array = np.asarray(values, dtype=np.float32)
    if len(array) < (2 if scheme == "lcb" else 1):
        raise ValueError(f"{len(array)} values are too few for '{scheme}'")
    if scheme == "majority_mean":
        result = majority_mean(array, numerics)
    elif scheme == "average":
        result = float(array.mean())
    elif scheme == "lcb":
        result = float(array.mean() - array.std(ddof=1))
    elif scheme == "success_vote":
        result = float(_succeeds(array).mean())
    else:
        raise ValueError(f"'{scheme}' is not one of {', '.join(get_args(Aggregation))}")
    return min(max(result, 0.0), 1.0)


def majority_mean(values: NDArray[np.float32], numerics: Numerics) -> float:
    """Return the mean of the larger of two groups: those that predict success and those that don't.

    Half of them count as the majority. "paper": whichever group it is. "released": a majority that
    predicts failure gives 0, however sure or unsure it is of it.
    """
    success = _succeeds(values)
    if success.mean() >= 0.5:
        return float(values[success].mean())
    return 0.0 if numerics == "released" else float(values[~success].mean())


def choose(values: Sequence[float]) -> int:
    """Return the index of the best candidate; the first of several, so a tie keeps the base seed.

    Raises:
        ValueError: no candidates, or a value that is not a number.
    """
    if not values or np.isnan(values).any():
        raise ValueError(f"there is nothing to choose from in {list(values)}")
    return int(np.argmax(values))


def _succeeds(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    above: NDArray[np.bool_] = values > np.float32(SUCCESS)
    return above
