"""Episodes of other programs into a store: each becomes a bag like any other, or leaves nothing."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from rosbags.typesys.store import Typestore

from cosmos_policy_ros import __version__
from cosmos_policy_ros.bags.messages import EpisodeMetadata
from cosmos_policy_ros.bags.writer import RECORDING, BagWriter, read_metadata
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.files import FolderLock
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import load_task, read_task, task_names
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.core.untrusted import escaped
from cosmos_policy_ros.episodes.episode import OUTCOME, QUALITY, SOURCE_NOTES
from cosmos_policy_ros.episodes.folders import bare_id, episode_id
from cosmos_policy_ros.episodes.labels import labels_of, number, write_labels
from cosmos_policy_ros.episodes.quality import (
    QualityMonitor,
    QualityReport,
    load_limits,
    sensors_of,
)
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.episodes.topics import absolute
from cosmos_policy_ros.interop.foreign_episode import (
    EpisodeContent,
    ImportContext,
    ImportOptions,
    Source,
    SourceMetadata,
)
from cosmos_policy_ros.rig.spec import RigSpec

SOURCE, SOURCE_DIGEST = "source", "source_sha256"
"""Entries of ``custom_data``: the source's name, and the sha256 over what was read of it."""
IMPORTED = "imported"
"""The outcome of every imported episode."""


class KnownSourceError(RolloutError):
    """The store has an episode made of this very source."""


@dataclass(frozen=True)
class Imported:
    """What became of a source: the bag's folder, its steps, seconds, quality and score.

    ``notes`` say what was done to the content on the way, and what was left out.
    """

    path: Path
    steps: int
    seconds: float
    quality: QualityReport
    score: float | None
    notes: tuple[str, ...] = ()


class Importer:
    """Puts episodes of other programs into a store."""

    def __init__(
        self, store: EpisodeStore, types: Typestore, options: ImportOptions | None = None
    ) -> None:
        """Find what the store has.

        Args:
            store: where episodes go.
            types: knows ROS's and this package's messages.
            options: the same for every source.

        Raises:
            ConfigError: no such rig or task.
        """
        self._store, self._types = store, types
        self._options = options or ImportOptions()
        self._limits = load_limits()
        folder = config_folder("tasks")
        tasks = tuple(load_task(name, folder) for name in task_names(folder))
        self._context = ImportContext(types, self._options, tasks)
        if self._options.rig:
            self._options.load_rig()
        if self._options.task:
            load_task(self._options.task, folder)
        self._known: dict[str, str] = {}  # ids of imported episodes by their sources' digests
        for path in store.episodes().values():
            if path.name.endswith(RECORDING):
                continue
            try:
                custom: Mapping[str, str] = read_metadata(path).get("custom_data") or {}
            except RolloutError:
                continue  # whatever it is, it is no import that was finished
            if SOURCE_DIGEST in custom:
                self._known[custom[SOURCE_DIGEST]] = bare_id(path.name)

    def take(self, source: Source) -> Imported:
        """Import one episode; nothing stays of an import that failed.

        Raises:
            KnownSourceError: the store has it.
            RolloutError: something is wrong with the source, or the disk refused.
        """
        with source.open(self._context) as episode:
            digest = episode.digest()
            if digest in self._known and not self._options.again:
                raise KnownSourceError(
                    f"{source.path}: is in {self._store.root} as {self._known[digest]}; --again "
                    f"imports it once more"
                )
            content = episode.content()
            metadata = self._metadata(content.rig, content.found)
            folder = self._store.root / (metadata.episode_id + RECORDING)
            new = not folder.exists()
            try:
                imported = self._write(content, metadata, source.name, digest)
            except BaseException:
                if new:
                    with suppress(OSError):  # unless another recorder has it
                        lock = FolderLock(folder)
                        shutil.rmtree(folder, ignore_errors=True)
                        lock.release()
                raise
        self._known[digest] = metadata.episode_id
        return imported

    def _metadata(self, rig: RigSpec, found: SourceMetadata) -> EpisodeMetadata:
        task, text = found.prompt.lower().replace(" ", "_"), ""
        fitting = (task.name for task in self._context.tasks if found.prompt in task.prompts)
        if wanted := self._options.task or next(fitting, None):
            file = read_task(wanted, config_folder("tasks"))
            task, text = file.task.name, file.text
        begun = datetime.fromtimestamp(found.start_ns / NS_PER_S)
        return EpisodeMetadata(
            episode_id=episode_id(task, begun, self._store.episodes()),
            task=task,
            prompt=found.prompt,
            rig=rig.name,
            engine=found.policy,
            operator_name=found.operator_name,
            package_version=__version__,
            rig_yaml=rig_text(rig),
            task_yaml=text,
        )

    def _write(
        self, content: EpisodeContent, metadata: EpisodeMetadata, name: str, digest: str
    ) -> Imported:
        rig, found, notes = content.rig, content.found, content.notes
        quality = QualityMonitor(
            sensors_of(rig, absolute), rig.observation.camera_skew, self._limits
        )
        folder, newest_ns, score = self._store.root / metadata.episode_id, 0, None
        with BagWriter(
            folder, content.topics, metadata, types=self._types, start_ns=found.start_ns
        ) as writer:
            for topic, received_ns, cdr in content.messages:
                writer.write(topic, received_ns, cdr)
                quality.add(topic, received_ns, cdr)
                newest_ns = max(newest_ns, received_ns)
            if found.operator_score is not None:
                labels = number(labels_of(metadata, found.operator_score, newest_ns))
                write_labels(writer, labels, self._types)
                score = labels[-1].points
            report = quality.report(newest_ns, shutil.disk_usage(self._store.root).free)
            path = writer.close(
                {
                    OUTCOME: IMPORTED,
                    QUALITY: report.to_json(),
                    SOURCE: escaped(name),
                    SOURCE_DIGEST: digest,
                    **({SOURCE_NOTES: "; ".join(notes)} if notes else {}),
                }
            )
        seconds = content.steps * rig.rates.dt
        return Imported(path, content.steps, seconds, report, score, notes)


def rig_text(rig: RigSpec) -> str:
    """Return a rig as the text of a rig file."""
    text = yaml.safe_dump(_plain(asdict(rig)), sort_keys=False, allow_unicode=True, width=100)
    return f"# As imported: made from the rig file '{rig.name}' and what the source holds.\n{text}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items() if each is not None}
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value
