"""Who takes part in an evaluation: a checkpoint, a policy server, or a baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cosmos_policy_ros.core.config import load_config, named_file
from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.dataset.windows import EpisodeWindows
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.folders import State, below
from cosmos_policy_ros.inference.engines import load_engine
from cosmos_policy_ros.inference.remote import RemotePolicy
from cosmos_policy_ros.inference.remote_config import load_remote
from cosmos_policy_ros.inference.spec import Decide, Engine, EngineSpec, SearchConfig
from cosmos_policy_ros.model.config import Numerics
from cosmos_policy_ros.planning.search import Foresee, run_search
from cosmos_policy_ros.rig.decision import Candidate, Decision, EngineInfo, Policy, Query
from cosmos_policy_ros.rig.safety_gate import SafetyGate
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.sim.demonstrator import Demonstrator

DIRECT = "direct"


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        name: names the row.
        engine: cosmos; remote, a policy server; demonstrator, the ceiling; or replay, the floor: a
            demonstration of another scene, drawn anew in every trial.
        checkpoint: a folder or a name in ``config/models``; for replay a folder of demonstrations;
            None for the demonstrator and a remote.
        planning: direct, or a search: a name in ``config/planning`` or a file.
        candidates: of the search, in place of as many as it says.
        world_model: checkpoint that predicts and values in a search; None for ``checkpoint``.
        denoising_steps: None as the checkpoint says.
        numerics: the released code's or the paper's; None as the checkpoint says.
        jitter: how much the demonstrator's ways differ; above 3 or so it fails.
        prompt: one of the task's, on the simulated rig; empty for its first.
        remote: URL of the policy server, for engine remote.
        remote_config: how it is spoken to: a name in ``config/remotes`` or a file; None for the one
            of the URL's scheme.
        charge_latency: let the simulated rig's clock go on for as long as each decision takes.
    """

    name: str
    engine: Literal["cosmos", "demonstrator", "replay", "remote"] = "cosmos"
    checkpoint: str | None = None
    planning: str = DIRECT
    candidates: int | None = None
    world_model: str | None = None
    denoising_steps: int | None = None
    numerics: Numerics | None = None
    jitter: float = 1.0
    prompt: str = ""
    remote: str | None = None
    remote_config: str | None = None
    charge_latency: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name: a contender needs one")
        if (self.engine == "remote") != bool(self.remote):
            raise ValueError(
                f"contender '{self.name}': engine remote and the URL of a server under remote go "
                f"together, found engine {self.engine} and remote {self.remote}"
            )
        if self.engine in ("cosmos", "replay") and not self.checkpoint:
            raise ValueError(f"contender '{self.name}': engine {self.engine} needs a checkpoint")
        if self.denoising_steps is not None and self.denoising_steps < 1:
            given = f"contender '{self.name}': denoising_steps {self.denoising_steps}"
            raise ValueError(f"{given} must be at least 1")
        if self.candidates is not None and (self.planning == DIRECT or self.candidates < 1):
            raise ValueError(
                f"contender '{self.name}': candidates {self.candidates} must be at least 1, of a "
                f"search; found planning {self.planning}"
            )


def check_names(contenders: Sequence[Contender]) -> None:
    """Raise ValueError unless there is a contender, and each has a name of its own."""
    names = [contender.name for contender in contenders]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"contenders: {names} must be at least one, with different names")


def check_not_simulated(contenders: Sequence[Contender]) -> None:
    """Raise ValueError where one has a key that means something on the simulated rig alone."""
    for each in contenders:
        for key in ("prompt", "candidates"):
            if given := getattr(each, key):
                raise ValueError(
                    f"contender '{each.name}': {key} {given} is for the simulated rig; prompts are "
                    "the states' or the benchmark's own, and a search's candidates its file's"
                )


def check_numbers(config: object, positive: Sequence[str], not_negative: Sequence[str]) -> None:
    """Raise ValueError unless attributes by these names are 1 or more, or 0 or more."""
    for least, names in ((1, positive), (0, not_negative)):
        for name in names:
            value = getattr(config, name)
            if not least <= value < math.inf:
                raise ValueError(f"{name}: {value} must be at least {least}, and finite")


def load_policy(contender: Contender, threads: int, rig: RigSpec | None = None) -> Policy:
    """Load a contender's networks, on the CPU or the GPU that there is.

    A search leaves out what the gate of ``rig`` would refuse; None where no gate is.

    Raises:
        CosmosPolicyError: checkpoint, search or demonstrations are missing or wrong, or a server
            cannot be reached.
    """
    if contender.engine == "demonstrator":
        return Demonstrator(jitter=contender.jitter)
    if contender.remote is not None:
        policy = RemotePolicy(load_remote(contender.remote, contender.remote_config))
        policy.reach()
        return policy
    assert contender.checkpoint is not None
    if contender.engine == "replay":
        return DemonstrationReplay(Path(contender.checkpoint).expanduser())
    search = None
    if contender.planning != DIRECT:
        file = named_file(contender.planning, config_folder("planning"))
        search = load_config(SearchConfig, file)
        if contender.candidates is not None:
            search = search.with_candidates(contender.candidates)
    spec = EngineSpec(
        engine=contender.engine,
        checkpoint=str(checkpoint_folder(contender.checkpoint)),
        threads=threads,
        denoising_steps=contender.denoising_steps,
        numerics=contender.numerics,
        search=search,
        world_model=contender.world_model and str(checkpoint_folder(contender.world_model)),
    )
    gate = None if rig is None or search is None else SafetyGate(rig)
    return EnginePolicy(load_engine(spec), search, None if gate is None else gate.foresee)


def rig_of(contender: Contender, rig: RigSpec) -> RigSpec:
    """Return the rig as it executes a contender's chunks.

    Raises:
        ConfigError: a server's URL or config is wrong, or no rig executes such chunks.
    """
    if contender.remote is None:
        return rig
    return load_remote(contender.remote, contender.remote_config).executing(rig)


def checkpoint_folder(name: str) -> Path:
    """Return a checkpoint's folder: a path, or a name in ``config/models``."""
    shipped = config_folder("models") / name
    return shipped if name and shipped.is_dir() else Path(name).expanduser()


class EnginePolicy:
    """An engine in this process, searched with if there is a search."""

    def __init__(
        self, engine: Engine, search: SearchConfig | None, foresee: Foresee | None = None
    ) -> None:
        self._engine, self._search, self._foresee = engine, search, foresee

    @property
    def info(self) -> EngineInfo:
        """The engine's."""
        info = self._engine.info
        assert isinstance(info, EngineInfo)
        return info

    def decide(self, query: Query) -> Decision:
        """Answer one query. Raises CosmosPolicyError when the engine cannot."""
        if self._search is not None:
            return run_search(self._engine, query, self._search, foresee=self._foresee)
        decision = self._engine.answer(Decide(query))
        assert isinstance(decision, Decision)
        return decision


class DemonstrationReplay:
    """Replays demonstrations of other scenes without looking: what a policy must beat."""

    def __init__(self, root: Path) -> None:
        """Take the finished episodes below a folder. Raises ConfigError: there are none."""
        self._episodes = sorted(each.path for each in below(root) if each.state is State.FINISHED)
        if not self._episodes:
            raise ConfigError(f"{root}: holds no demonstration to replay")
        self._drawn = 0

    @property
    def info(self) -> EngineInfo:
        """No checkpoint."""
        return EngineInfo()

    def decide(self, query: Query) -> Decision:
        """Return the next 50 rows of the demonstration that the first query's seed draws."""
        if query.index == 0:
            self._drawn = int(np.random.default_rng(query.seed).integers(len(self._episodes)))
        windows = EpisodeWindows(read_episode(self._episodes[self._drawn]))
        steps = windows.rig.rig.rates.chunk_steps
        first = min(query.index * steps, len(windows) - 1)
        return Decision(
            positions=windows.chunk(first, steps),
            dt=windows.rig.rig.rates.dt,
            candidates=(Candidate(query.seed),),
            chosen=0,
            reason=f"replays {self._episodes[self._drawn].name}",
            engine="demonstrator",
        )
