"""Every error an operator can meet.

A message names the thing, the value found, the limit, and what to do next. Nodes show it as it is,
without a traceback; anything that is not a :class:`CosmosPolicyError` is a bug.
"""

from __future__ import annotations


class CosmosPolicyError(Exception):
    """Base of all errors with a message meant for the operator."""


class ConfigError(CosmosPolicyError):
    """A config file or parameter is wrong; names the file and the key's path."""


class ObservationError(CosmosPolicyError):
    """The policy may not be asked now: a source is missing, stale, skewed, frozen or unreadable."""


class CheckpointError(CosmosPolicyError):
    """A checkpoint is missing, incomplete or not what its config says."""


class WorkerError(CosmosPolicyError):
    """The inference process died, hung or refused a request."""


class BenchmarkError(CosmosPolicyError):
    """A benchmark is not installed, is not the one that its pins name, or shows what it must not.

    Unlike a :class:`WorkerError` it ends the whole evaluation: no trial here would count.
    """


class RemoteError(CosmosPolicyError):
    """A remote policy cannot be reached, fell silent, reports an error, or sends what is no chunk.

    Unlike a :class:`WorkerError` it ends the run: nothing is asked again while arms move.
    """


class RolloutError(CosmosPolicyError):
    """An episode cannot be started, stopped, scored, written or read as asked."""


class RigError(CosmosPolicyError):
    """The simulated rig was asked for something it cannot do."""


class TrainingError(CosmosPolicyError):
    """A training run cannot start, or has gone wrong."""
