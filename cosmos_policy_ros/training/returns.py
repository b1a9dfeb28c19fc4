"""What a state was worth: the discounted return of an episode, as the value frame holds it."""

from __future__ import annotations

from cosmos_policy_ros.model.config import Numerics


def value_target(score: float, steps_left: int, discount: float, numerics: Numerics) -> float:
    """Return the training target of a state's value.

    The reward comes at the end only: the return is discount ** steps_left * reward. "paper": the
    reward is the score, so a half done task is worth half. "released": the code divides the return
    by the reward again, so that every score above zero counts as full success.

    Args:
        score: of the episode, in [0, 1]; 1 for a demonstration.
        steps_left: control steps from the state to the last one of the episode; 0 at the end.
        discount: per control step, in (0, 1]; 0.998 for ALOHA.
        numerics: which of the two.

    Returns:
        A number in [-1, 1]; -1 for a failure, 1 for a success at its end.

    Raises:
        ValueError: an argument outside its range.
    """
    if not 0 <= score <= 1:
        raise ValueError(
            f"score {score} lies outside 0 ... 1; an operator's 0-100 is divided by 100"
        )
    if steps_left < 0:
        raise ValueError(f"{steps_left} steps left; the state lies behind the episode's end")
    if not 0 < discount <= 1:
        raise ValueError(f"discount {discount} lies outside 0 ... 1, without 0")
    reward = score if numerics == "paper" else float(score > 0)
    return 2 * discount**steps_left * reward - 1
