"""Whether a file's tensors are exactly those that a network is made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from cosmos_policy_ros.core.errors import CheckpointError

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


def summarise(names: Iterable[str]) -> list[str]:
    """Fold names that differ in the block's number only: ``blocks.{0-27}.mlp.layer1.weight``."""
    folded: dict[tuple[str, str], list[int]] = {}
    rest = []
    for name in names:
        match = re.fullmatch(r"(.*?blocks\.)(\d+)(\..*)", name)
        if match:
            folded.setdefault((match[1], match[3]), []).append(int(match[2]))
        else:
            rest.append(name)
    for (head, tail), numbers in folded.items():
        blocks = _ranges(sorted(numbers))
        rest.append(f"{head}{blocks if len(numbers) == 1 else '{' + blocks + '}'}{tail}")
    return sorted(rest)


def _ranges(numbers: list[int]) -> str:
    """Write [0, 1, 2, 5] as "0-2,5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
