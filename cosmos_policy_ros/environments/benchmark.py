"""The benchmarks that can be run: ``config/benchmarks/*.yaml`` as dataclasses."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.config import did_you_mean, from_mapping, load_config, named_file
from cosmos_policy_ros.core.errors import BenchmarkError, ConfigError, WorkerError
from cosmos_policy_ros.core.paths import config_folder, package_share
from cosmos_policy_ros.core.untrusted import parse_json, read_text, reading
from cosmos_policy_ros.environments.environment import Deadlines, EnvironmentProcess, Scene
from cosmos_policy_ros.rig.observation import Observation

GRID = 16  # of the means that a picture is compared by
ROUNDING = 1e-6  # of the anchor's state: processors differ by less, versions of MuJoCo by more
PICTURES_APART = 6.0  # of 255, mean over the grid: renderers differ by less, wrong textures by more
ANCHORS_AT_MOST = 1 << 18  # bytes


@dataclass(frozen=True)
class Suite:
    """Tasks that make one rate of the table.

    Attributes:
        title: its column.
        tasks: names or numbers, as the benchmark has them.
        limit: steps that a policy has, after those that let the objects come to rest.
        limits: of tasks that have others.
    """

    title: str
    tasks: tuple[str, ...]
    limit: int
    limits: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError("tasks: at least one is needed, and each once")
        for name, limit in {"limit": self.limit, **self.limits}.items():
            if limit < 1:
                raise ValueError(f"limits: {name}: {limit} steps must be at least 1")
        for name in self.limits:
            if name not in self.tasks:
                raise ValueError(f"limits: '{name}' is no task{did_you_mean(name, self.tasks)}")


@dataclass(frozen=True)
class PublishedRow:
    """Rates of a method as the paper prints them [%].

    Attributes:
        name: of the method.
        rates: per column in order, None where the paper has none.
        demonstrations: per task that it was trained on, as the paper prints them.
    """

    name: str
    rates: tuple[float | None, ...]
    demonstrations: str = ""


@dataclass(frozen=True)
class Settings:
    """What the environment's process is given; each benchmark takes what it knows.

    Attributes:
        image_size: that the cameras render [px].
        cameras: the benchmark's names by role.
        wait_steps: in which objects come to rest before the policy begins.
        wait_action: of these steps.
        reset_seed: of NumPy's global generator, before each reset.
        robot: the benchmark's name of it.
        padding: what follows a policy's row in the robot's action, such as a base that rests.
        scenes: layouts and styles of kitchens; trials are spread over them in order.
        trials_per_scene: before the next one's turn.
        split: of the objects.
    """

    image_size: int
    cameras: Mapping[str, str]
    wait_steps: int
    wait_action: tuple[float, ...]
    reset_seed: int = 0
    robot: str = ""
    padding: tuple[float, ...] = ()
    scenes: tuple[tuple[int, ...], ...] = ()
    trials_per_scene: int = 1
    split: str = ""


@dataclass(frozen=True)
class Benchmark:
    """A file of ``config/benchmarks``.

    Attributes:
        title: for people.
        adapter: file, in this package's folder ``environments``, that its interpreter runs.
        environment: folder of that interpreter's environment, beside the package's own.
        executed: rows of each chunk that are executed, from the first on.
        dt: seconds between two rows.
        action_dims, state_dims: widths of a row and of the measured state.
        settings: of the environment's process.
        suites: by name, in the order of the table.
        table: its title.
        initial_states: of each task; 0 for any number.
        prompts_at_reset: whether a prompt is composed at each reset.
        published: the paper's rows.
        anchor: a JSON file of this folder with an observation that others have published; empty
            for none.
        deadlines: of the environment's process.
    """

    title: str
    adapter: str
    environment: str
    executed: int
    dt: float
    action_dims: int
    state_dims: int
    settings: Settings
    suites: Mapping[str, Suite]
    table: str
    initial_states: int = 0
    prompts_at_reset: bool = False
    published: tuple[PublishedRow, ...] = ()
    anchor: str = ""
    deadlines: Deadlines = field(default_factory=Deadlines)

    def __post_init__(self) -> None:
        if self.executed < 1 or not self.dt > 0:
            raise ValueError(f"executed: {self.executed} and dt: {self.dt} must be above 0")
        if not self.suites:
            raise ValueError("suites: at least one is needed")
        columns = len(self.suites) + (len(self.suites) > 1)
        for row in self.published:
            if len(row.rates) != columns:
                raise ValueError(f"published: '{row.name}' has {len(row.rates)} of {columns} rates")

    @property
    def step_limits(self) -> dict[tuple[str, str], int]:
        """Steps that a policy has, by suite and task."""
        return {
            (name, task): suite.limits.get(task, suite.limit)
            for name, suite in self.suites.items()
            for task in suite.tasks
        }


def load_benchmark(name: str) -> Benchmark:
    """Read a benchmark by its name in ``config/benchmarks`` or its file. Raises ConfigError."""
    return load_config(Benchmark, named_file(name, config_folder("benchmarks")))


def interpreter(benchmark: Benchmark, folder: str | None) -> Path:
    """Return the benchmark's Python.

    Args:
        benchmark: whose.
        folder: of its environment; None for the one beside the package's own.

    Raises:
        BenchmarkError: there is none.
    """
    beside = (package_share(), Path(sys.prefix).parent)
    places = (
        [Path(folder).expanduser()]
        if folder is not None
        else [place / benchmark.environment for place in beside]
    )
    for place in places:
        if (place / "bin" / "python").exists():
            return place.absolute() / "bin" / "python"
    raise BenchmarkError(
        f"{benchmark.title} is not installed in {' or '.join(map(str, places))}; run "
        "scripts/setup_benchmark, or name the folder of its environment under 'environment'"
    )


def open_process(benchmark: Benchmark, folder: str | None) -> EnvironmentProcess:
    """Return a benchmark's environment, not yet started. Raises BenchmarkError."""
    return EnvironmentProcess(
        interpreter(benchmark, folder),
        Path(__file__).parent / benchmark.adapter,
        asdict(benchmark.settings),
        benchmark.step_limits,
        benchmark.deadlines,
    )


# ---- the anchor -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Anchor:
    """An observation that others have published, as numbers.

    Attributes:
        source: where it is from.
        suite, task, trial: the scene that it is of, after the steps that let objects come to rest.
        seed: of the reset.
        state: all its numbers.
        pictures: per camera, means over the cells of a 16 by 16 grid, rows then columns then
            colours.
    """

    source: str
    suite: str
    task: str
    trial: int
    seed: int
    state: tuple[float, ...]
    pictures: Mapping[str, tuple[float, ...]]


class Verdict(NamedTuple):
    """What a benchmark's environment shows beside its anchor.

    Attributes:
        exact: whether the state is met to the last bit.
        state: the largest difference of its numbers.
        pictures: the largest camera's mean difference of the grid, of 255.
    """

    exact: bool
    state: float
    pictures: float

    def __str__(self) -> str:
        met = "to the last bit" if self.exact else f"within {self.state:.1g}"
        return f"anchor met {met}, pictures within {self.pictures:.1f} of 255"


def load_anchor(path: Path) -> Anchor:
    """Read an anchor. Raises ConfigError."""
    with reading(path, "an anchor", ConfigError):
        content = parse_json(read_text(path, ANCHORS_AT_MOST))
    return from_mapping(Anchor, content, str(path))


def grid_means(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the (16, 16, 3) means of a picture's cells; its sides are multiples of 16."""
    rows, columns = image.shape[0] // GRID, image.shape[1] // GRID
    cells = image.reshape(GRID, rows, GRID, columns, 3).astype(np.float64)
    means: NDArray[np.float64] = cells.mean(axis=(1, 3))
    return means


def judge(anchor: Anchor, seen: Observation) -> Verdict:
    """Compare an observation with an anchor.

    Raises:
        BenchmarkError: they differ by more than processors and renderers do.
    """
    advice = (
        "these are other versions than the pins, and no rate of theirs can be compared: run "
        "scripts/setup_benchmark again"
    )
    state = np.array(anchor.state)
    if seen.state.shape != state.shape:
        raise BenchmarkError(
            f"the state has {len(seen.state)} numbers, the anchor {len(state)}; {advice}"
        )
    off = float(np.abs(seen.state - state).max())
    if off > ROUNDING:
        raise BenchmarkError(
            f"the state is {off:.2g} off the anchor ({anchor.source}; limit {ROUNDING:g}): {advice}"
        )
    apart = 0.0
    for role, means in anchor.pictures.items():
        found = grid_means(seen.images[role]).ravel()
        apart = max(apart, float(np.abs(found - np.array(means)).mean()))
    if apart > PICTURES_APART:
        raise BenchmarkError(
            f"the pictures are {apart:.1f} of 255 off the anchor ({anchor.source}; limit "
            f"{PICTURES_APART:g}): {advice}"
        )
    return Verdict(bool((seen.state == state).all()), off, apart)


def examine(benchmark: Benchmark, environment: EnvironmentProcess) -> str:
    """Start an environment; return its versions and its anchor's verdict in a line.

    Raises:
        BenchmarkError: it is not installed, cannot be started, or does not meet its anchor.
    """
    try:
        environment.start()
        verdict = "no anchor is published"
        if not benchmark.anchor:
            suite, task = next(iter(benchmark.step_limits))
            environment.reset(Scene(suite, task, 0), 0)  # its cameras are looked at
        else:
            anchor = load_anchor(config_folder("benchmarks") / benchmark.anchor)
            environment.reset(Scene(anchor.suite, anchor.task, anchor.trial), anchor.seed)
            verdict = str(judge(anchor, environment.observe()))
    except WorkerError as error:
        raise BenchmarkError(
            f"{benchmark.title} cannot be examined: {error}; run scripts/setup_benchmark again"
        ) from error
    versions = ", ".join(f"{name} {version}" for name, version in environment.about.items())
    return f"{versions}; {verdict}"
