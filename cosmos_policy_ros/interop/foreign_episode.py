"""An episode that another program recorded: what the importer asks of it, whatever its format.

A format is one module with a class that has :class:`Source`'s methods; ``interop.sources`` lists
them, finds out which of them a path is, and is the only place that knows them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.mcap_file import Topic
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import Task, load_task
from cosmos_policy_ros.core.untrusted import shown
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.rig.spec import RigSpec, load_rig

Colours = Literal["rgb", "bgr"]
Arm = Literal["left", "right"]


@dataclass(frozen=True)
class ImportOptions:
    """What sources do not say, or say wrongly.

    Attributes:
        rig: name or path of a rig file; None for the stock ALOHA's, or the simulated one's where
            the source says that it was simulated.
        task: name or path of a task file; None for the one that has the episode's prompt.
        prompt: in place of the sources' own.
        rate: of the source's rows [Hz].
        cameras: the sources' names of cameras by their roles; others are recognised.
        colours: "rgb" or "bgr", see :func:`hdf5_layout.open_hdf5`; None for what a layout tells.
        first_arm: whose columns come first in a LeRobot data set, each arm's from waist to gripper
            whatever names they have; None for what the names tell.
        videos_as: what the frames of a video become.
        again: take a source that the store has.
    """

    rig: str | None = None
    task: str | None = None
    prompt: str | None = None
    rate: float | None = None
    cameras: Mapping[str, str] = field(default_factory=dict)
    colours: Colours | None = None
    first_arm: Arm | None = None
    videos_as: Literal["jpeg", "raw"] = "jpeg"
    again: bool = False

    def load_rig(self, *, simulated: bool = False) -> RigSpec:
        """Return the rig that was chosen, or the stock one. Raises ConfigError."""
        return load_rig(self.rig or ("sim" if simulated else "interbotix_1"), config_folder("rigs"))


@dataclass(frozen=True)
class ImportContext:
    """What is the same for every source of an import.

    Attributes:
        types: knows ROS's and this package's messages.
        options: the operator's.
        tasks: those that ship and the lab's own.
    """

    types: Typestore
    options: ImportOptions
    tasks: tuple[Task, ...]

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of all known tasks."""
        return tuple(prompt for task in self.tasks for prompt in task.prompts)

    def given_prompt(self) -> str:
        """Return the prompt that the operator gave, or the given task's first; "" for neither."""
        options = self.options
        if options.prompt or not options.task:
            return options.prompt or ""
        return load_task(options.task, config_folder("tasks")).prompts[0]


@dataclass(frozen=True)
class SourceMetadata:
    """What a source tells of its episode.

    Attributes:
        prompt: the task's text.
        policy: what drove the arms; "" for a demonstration.
        operator_name: of the person who watched.
        start_ns: when it was recorded, as well as the source tells, nanoseconds since the epoch.
        operator_score: of a rollout; None where the source has none.
    """

    prompt: str
    policy: str
    operator_name: str
    start_ns: int
    operator_score: OperatorScore | None


@dataclass(frozen=True)
class EpisodeContent:
    """What is written of an episode; checked but for what only reading it all can show.

    Attributes:
        rig: as the bag will show it.
        found: what the source tells.
        topics: of the messages, names absolute.
        steps: rows of action.
        notes: what was done to the source's content on the way, and what of it is left out.
        messages: (topic, receive stamp [ns], serialised message), to be gone through once.
    """

    rig: RigSpec
    found: SourceMetadata
    topics: tuple[Topic, ...]
    steps: int
    notes: tuple[str, ...]
    messages: Iterable[tuple[str, int, bytes]]


class OpenEpisode(Protocol):
    """A source that is open."""

    def digest(self) -> str:
        """Return a sha256 (hex) by which the same episode is known again."""

    def content(self) -> EpisodeContent:
        """Check the episode and return what is written of it.

        Raises:
            RolloutError: what is wrong with it, with its path.
        """


class Source(Protocol):
    """Where an episode of another program is.

    Attributes:
        path: its file or folder, for messages.
        name: kept in the bag.
    """

    @property
    def path(self) -> Path: ...  # noqa: D102

    @property
    def name(self) -> str: ...  # noqa: D102

    def open(self, context: ImportContext) -> AbstractContextManager[OpenEpisode]:
        """Open it. Raises RolloutError where it is none, or damaged."""


def check_prompt(where: object, prompt: str) -> None:
    """Refuse a prompt that has something in it that cannot be seen. Raises RolloutError."""
    if not prompt.isprintable():
        raise RolloutError(
            f"{where}: its prompt '{shown(prompt)}' has characters that cannot be shown, and would "
            f"be learnt with them; give --prompt"
        )
