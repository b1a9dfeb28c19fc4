"""The learning rate over the steps."""

from __future__ import annotations

from cosmos_policy_ros.training.config import OptimiserConfig


def learning_rate(step: int, config: OptimiserConfig) -> float:
    """Return the learning rate of a step, from 0 (reference facts, §8.7).

    Linear up, linear down, and then a sharp drop to what it stays at.
    """
    warm, end = config.warmup_steps, config.decay_steps
    if step < warm:
        factor = config.start_factor + (1 - config.start_factor) * step / warm
    elif step < end:
        factor = 1 + (config.decayed_factor - 1) * (step - warm) / (end - warm)
    else:
        factor = config.final_factor
    return factor * config.learning_rate
