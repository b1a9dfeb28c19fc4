"""Whether a file's tensors are exactly those that a network is made of."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cosmos_policy_ros.errors import CheckpointError
from cosmos_policy_ros.model.transformer_keys import summarise

NAMES_SHOWN = 3  # of a file that has nothing in common with the network


def check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str) -> None:
    """Compare names and shapes.

    Args:
        expected: a network's state, on the meta device too.
        found: the file's tensors under the same names.
        source: what the message calls them, a file's path.

    Raises:
        CheckpointError: names every tensor that is missing, unknown or of a wrong shape; of a file
            that is something else altogether, a few of those it has.
    """
    shared = sorted(expected.keys() & found.keys())
    if not shared:
        names = sorted(found)
        rest = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        raise CheckpointError(
            f"{source} is something else: it has none of the {len(expected)} tensors that the "
            f"checkpoint's config asks for; it has {', '.join(names[:NAMES_SHOWN]) or 'none'}{rest}"
        )
    reshaped = [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in shared
        if found[name].shape != expected[name].shape
    ]
    kinds = {
        "missing": summarise(expected.keys() - found.keys()),
        "unknown": summarise(found.keys() - expected.keys()),
        "wrong shape": reshaped,
    }
    problems = [f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
    if problems:
        raise CheckpointError(
            f"{source} does not fit the sizes in the checkpoint's config; {'; '.join(problems)}"
        )
