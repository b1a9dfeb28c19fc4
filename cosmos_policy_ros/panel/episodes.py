"""The episodes of a folder as the operator's page shows them: table, one episode, calibration."""

from __future__ import annotations

import math
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cosmos_policy_ros.bags.mcap_file import VERIFY
from cosmos_policy_ros.bags.messages import EpisodeMetadata, Label
from cosmos_policy_ros.bags.types import load_types
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.paths import package_share
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.core.untrusted import reading
from cosmos_policy_ros.episodes.compact import is_compacted
from cosmos_policy_ros.episodes.episode import Episode, read_episode
from cosmos_policy_ros.episodes.folders import (
    State,
    bare_id,
    candidates,
    copies,
    id_number,
    look,
)
from cosmos_policy_ros.episodes.labels import rubric_of
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.episodes.table import Row, begun, read_row
from cosmos_policy_ros.panel.status import chosen_value, describe_rubric, number
from cosmos_policy_ros.panel.timeline import EpisodeTimeline, read_decisions, text

OPENED = 4
"""Episodes whose index is kept: two to compare, and some to go back to; a megabyte a minute."""
READING = 1.0
"""Seconds of one call that reads many episodes, some 30 ms each: other requests wait meanwhile."""
MOST_SCATTERED = 4000
"""Points of the calibration's plot; more cover each other. Means and numbers are of all points."""
BINS = 10
"""Of the predicted value, each a tenth wide."""
DIGEST = 12
"""Characters of a checkpoint's digest, as messages shorten it."""
OLDEST_STAMP = 2000
"""Year; a simulated clock begins in 1970, and its times would only mislead."""
SEALED = "a blind trial: what was decided is shown when its evaluation is unsealed"

# Whether a folder is being recorded shows in no file.
_CHANGING = (State.RECORDING, State.UNFINISHED, State.UNREADABLE)
_Version = tuple[tuple[str, int, int], ...]


class _Known(NamedTuple):
    """A folder as it was last looked at.

    Attributes:
        version: names, sizes and times of change of its files; empty where none is to be trusted.
        row: what was found.
        size: bytes of its files.
        search: settings of the search behind its first decision; empty without one.
    """

    version: _Version
    row: Row
    size: int
    search: str


class _Values(NamedTuple):
    """The values that an episode's decisions predicted: (seconds, value in [0, 1])."""

    version: _Version
    points: tuple[tuple[float, float], ...]


class EpisodeLibrary:
    """Episodes of one folder as the page shows them.

    Every method blocks while it reads, and is meant for one thread. What has not changed on disk is
    not read again. Answers are plain values that JSON can hold.

    Attributes:
        left: episodes that the last :meth:`table` did not get to.
    """

    def __init__(
        self, root: Path, hides: Callable[[EpisodeMetadata], bool] = lambda _: False
    ) -> None:
        """Look at nothing yet; the folder need not be there before the first recording.

        Args:
            root: the folder.
            hides: whether what an episode's policy decided and imagined is not shown, since it
                would tell the contender of a blind trial.
        """
        self.left = 0
        self._root, self._hides = root, hides
        self._store: EpisodeStore | None = None
        self._known: dict[Path, _Known] = {}
        self._values: dict[Path, _Values] = {}
        self._opened: OrderedDict[Path, tuple[_Version, EpisodeTimeline]] = OrderedDict()

    def table(self, within: float = math.inf) -> list[dict[str, Any]]:
        """Return all episodes, oldest first, as far as can be told of an unreadable one.

        Args:
            within: seconds after which no more are read, the newest first; those that are still
                unknown then are left out, and counted by ``left``.

        Returns:
            Of each "id" (to ask for it by), "title", "task", "begun" (ISO, local time), "seconds",
            "bytes", "score" (0 to 100), "success", "note", "go", "reasons", "state" (as ``cosmos
            episodes list`` says it), "sentence" (what is special about it, or wrong, and what to
            do), "readable", "checkpoint", "digest", "engine", "planning", "operator", "outcome".
            What is not known is None, or empty.

        Raises:
            RolloutError: the folder cannot be listed.
        """
        found, self.left = self._look(time.monotonic() + within)
        known = list(found.values())
        same = copies(each.row.folder for each in known)
        names = Counter(bare_id(each.row.folder.path.name) for each in known)
        entries = []
        for each in known:
            path = each.row.folder.path
            name = bare_id(path.name)
            row = replace(each.row, same=same[path].name) if path in same else each.row
            own = name if names[name] == 1 else path.name
            entries.append(self._entry(row, each, own))
        return entries

    def episode(self, episode: str) -> dict[str, Any]:
        """Return one episode for its page.

        Args:
            episode: the id that the table has for it, its folder's name, or its number alone.

        Returns:
            What the table has of it, "metadata", "quality", "labels" (oldest first), "rubric", and
            what happened over time: see :meth:`EpisodeTimeline.all`.

        Raises:
            RolloutError: there is none, or it cannot be read, and what to do.
        """
        path = self._find(episode)
        known = self._look_at(path, _version(path))
        found = known.row.episode
        if found is None:
            raise RolloutError(f"{path}: {known.row.trouble}")
        troubles: list[str] = []
        rubric = None
        try:
            if (rules := rubric_of(found.metadata)) is not None:
                rubric = describe_rubric(rules)
        except RolloutError as error:
            troubles.append(text(error))
        happened = self._timeline(path, found).all()
        metadata = _metadata(found.metadata)
        if self._hides(found.metadata):
            happened |= {"decisions": [], "values": [], "left_out": {}}
            metadata["trial"] = ""
            troubles.append(SEALED)
        return {
            **self._entry(known.row, known, episode),
            "metadata": metadata,
            "discarded": found.discarded,
            "discard_reason": text(found.discard_reason),
            "recovered": text(found.recovered),
            "source_notes": text(found.source_notes),
            "compacted": is_compacted(found),
            "labels": [_label(each) for each in found.labels],
            "rubric": rubric,
            **happened,
            "troubles": troubles + happened["troubles"],
        }

    def frames(self, episode: str, seconds: float) -> tuple[dict[str, Any], list[bytes]]:
        """Return an episode's images at a time as JPEG files; see :meth:`EpisodeTimeline.frames`.

        Raises:
            RolloutError: there is no such episode, or it cannot be read, and what to do.
        """
        path = self._find(episode)
        timeline = self._timeline(path)
        header, images = timeline.frames(seconds)
        if self._hides(timeline.episode.metadata):
            kept = [i for i, each in enumerate(header["images"]) if each["kind"] != "imagined"]
            header["images"] = [header["images"][i] for i in kept]
            images = [images[i] for i in kept]
        return {"episode": episode, **header}, images

    def calibration(self) -> dict[str, Any]:
        """Hold what was predicted against what was obtained, over all scored episodes.

        Each decision of a scored episode that predicted a value is a point. Discarded episodes and
        sealed trials are left out. A call ends after :data:`READING` seconds: call again until
        "left" is 0.

        Returns:
            "points" (at most :data:`MOST_SCATTERED`): "episode", "t", "predicted", "obtained" (the
            score / 100); "bins" that hold any: "low", "high", "count", and the means "predicted"
            and "obtained"; "count" of all points, "episodes" they are of, "correlation" (Pearson's;
            None where either does not vary), "bias" (mean of predicted less obtained), and "left",
            the episodes not read yet.

        Raises:
            RolloutError: the folder cannot be listed.
        """
        ends = time.monotonic() + READING
        points: list[tuple[str, float, float, float]] = []
        looked, left = self._look(ends)
        episodes = 0
        for path, known in looked.items():
            found = known.row.episode
            if found is None or found.discarded or found.score is None:
                continue
            if self._hides(found.metadata):
                continue
            if not self._has_values(path, known.version):
                if time.monotonic() > ends:
                    left += 1
                    continue
                self._values[path] = _Values(known.version, _read_values(found))
            own = self._values[path].points
            obtained = number(found.score.points / 100, 4) or 0.0
            episodes += bool(own)
            points += [(path.name, seconds, value, obtained) for seconds, value in own]
        return {**_calibrate(points), "episodes": episodes, "left": left}

    def _look(self, ends: float) -> tuple[dict[Path, _Known], int]:
        """Look at the folder until a time of the monotonic clock; what is known costs nothing.

        Returns:
            What was found, oldest first, and how many episodes are left to be read.
        """
        if not self._root.is_dir():  # the recorder makes it
            return {}, 0
        known, left = {}, 0
        for path in reversed(candidates(self._root)):  # by name: the newest first
            version = _version(path)
            if self._is_known(path, version) or time.monotonic() < ends:
                known[path] = self._look_at(path, version)
            else:
                left += 1
        self._known = known
        self._values = {path: each for path, each in self._values.items() if path in known}
        return dict(sorted(known.items(), key=lambda item: _order(item[1].row))), left

    def _is_known(self, path: Path, version: _Version) -> bool:
        before = self._known.get(path)
        return before is not None and bool(version) and version == before.version

    def _look_at(self, path: Path, version: _Version) -> _Known:
        if self._is_known(path, version):
            return self._known[path]
        row = read_row(look(path))
        search = _read_search(row.episode) if row.episode is not None else ""
        trusted = () if row.folder.state in _CHANGING else version
        known = _Known(trusted, row, sum(size for _, size, _ in version), search)
        self._known[path] = known
        return known

    def _find(self, episode: str) -> Path:
        """Return an episode's folder. Names are compared, never joined to a path."""
        if not self._root.is_dir():
            raise RolloutError(f"{self._root}: holds no episode yet; start one first")
        # As the table calls it: at each step of a slider, so without another look at the folder.
        for called in (lambda path: path.name, lambda path: bare_id(path.name)):
            for path in self._known:
                if called(path) == episode and os.path.lexists(path):
                    return path
        for path in candidates(self._root):
            if path.name == episode:
                return path
        if self._store is None:
            self._store = EpisodeStore(self._root, load_types(package_share() / "msg"))
        return self._store.find(episode)

    def _timeline(self, path: Path, found: Episode | None = None) -> EpisodeTimeline:
        """Return an episode's timeline, from those kept if its files have not changed."""
        version = _version(path)
        kept = self._opened.pop(path, None)
        if kept is None or kept[0] != version or not version:
            with reading(path, "an episode", RolloutError, VERIFY):
                kept = version, EpisodeTimeline(found or read_episode(path))
        self._opened[path] = kept
        while len(self._opened) > OPENED:
            self._opened.popitem(last=False)
        return kept[1]

    def _entry(self, row: Row, known: _Known, own_id: str) -> dict[str, Any]:
        """Return an episode's line of the table."""
        entry = _entry(row, known, own_id)
        if row.episode is not None and self._hides(row.episode.metadata):
            entry["planning"] = ""
        return entry

    def _has_values(self, path: Path, version: _Version) -> bool:
        known = self._values.get(path)
        return known is not None and bool(version) and known.version == version


def _version(path: Path) -> _Version:
    """Return what tells a folder's files from changed ones; empty when it cannot be listed."""
    try:
        with os.scandir(path) as entries:
            files = [each for each in entries if each.is_file()]
            stats = [(each.name, each.stat()) for each in files]
    except OSError:
        return ()
    return tuple(sorted((name, status.st_size, status.st_mtime_ns) for name, status in stats))


def _order(row: Row) -> tuple[bool, int, str]:
    count = id_number(row.folder.id)
    return not count, count, row.folder.path.name


def _read_search(episode: Episode) -> str:
    """Return the search behind an episode's first decision; empty where it cannot be read."""
    try:
        with reading(episode.path, "an episode", RolloutError, VERIFY):
            for _, decision in read_decisions(episode, 1):
                return text(getattr(decision, "search", ""))
    except RolloutError:  # the table has a row for it all the same; its page says what is wrong
        pass
    return ""


def _read_values(episode: Episode) -> tuple[tuple[float, float], ...]:
    """Return the values predicted in an episode; none of one that is damaged."""
    try:
        with reading(episode.path, "an episode", RolloutError, VERIFY):
            found = [(seconds, chosen_value(each)) for seconds, each in read_decisions(episode)]
    except RolloutError:
        return ()
    return tuple((seconds, value) for seconds, value in found if value is not None)


def _entry(row: Row, known: _Known, own_id: str) -> dict[str, Any]:
    """Return an episode's line of the table."""
    folder, episode = row.folder, row.episode
    start = begun(folder.id) or begun(folder.path.name)
    entry: dict[str, Any] = {
        "id": own_id,
        "title": folder.title,
        "begun": start.isoformat() if start else "",
        "bytes": known.size,
        "state": row.state,
        "sentence": text(row.trouble),
        "readable": episode is not None,
        **dict.fromkeys(("task", "note", "checkpoint", "digest", "engine"), ""),
        **dict.fromkeys(("planning", "operator", "outcome", "prompt"), ""),
        **dict.fromkeys(("seconds", "score", "success", "go")),
        "reasons": [],
    }
    if episode is None:
        return entry
    metadata, score = episode.metadata, episode.score
    return {
        **entry,
        "sentence": "; ".join(_remarks(row, episode)),
        "task": text(metadata.task),
        "prompt": text(metadata.prompt),
        "seconds": number(episode.duration_ns / NS_PER_S, 3),
        "score": number(score.points, 2) if score else None,
        "success": score.success if score else None,
        "note": text(score.note) if score else "",
        "go": episode.quality.go,
        "reasons": [text(reason) for reason in episode.quality.reasons],
        "checkpoint": text(metadata.checkpoint),
        "digest": text(metadata.checkpoint_digest)[:DIGEST],
        "engine": text(metadata.engine),
        "planning": known.search,
        "operator": text(metadata.operator_name),
        "outcome": text(episode.outcome),
    }


def _remarks(row: Row, episode: Episode) -> Iterable[str]:
    """Yield what is special about an episode that can be read."""
    if episode.discarded:
        yield f"discarded: {text(episode.discard_reason) or 'no reason was given'}"
    if is_compacted(episode):
        yield "compacted: its images are video, no longer those that were decided on"
    if episode.recovered:
        yield f"recovered: {text(episode.recovered)}"


def _metadata(metadata: EpisodeMetadata) -> dict[str, str]:
    values = metadata.custom_data()
    return {name: text(value) for name, value in values.items()}


def _label(label: Label) -> dict[str, Any]:
    given = datetime.fromtimestamp(label.stamp_ns / NS_PER_S)
    return {
        "revision": label.revision,
        "kind": label.kind,
        "item": text(label.item),
        "points": number(label.points, 2),
        "success": label.success,
        "operator": text(label.operator_name),
        "note": text(label.note),
        "stamp": f"{given:%Y-%m-%dT%H:%M:%S}" if given.year > OLDEST_STAMP else "",
    }


def _calibrate(points: list[tuple[str, float, float, float]]) -> dict[str, Any]:
    """Return the plot's points, and the numbers of all of them."""
    predicted = np.array([value for _, _, value, _ in points], np.float64)
    obtained = np.array([score for *_, score in points], np.float64)
    bins = []
    which = np.clip((predicted * BINS).astype(np.int64), 0, BINS - 1)
    for index in range(BINS):
        inside = which == index
        if inside.any():
            bins.append(
                {
                    "low": index / BINS,
                    "high": (index + 1) / BINS,
                    "count": int(inside.sum()),
                    "predicted": number(predicted[inside].mean(), 4),
                    "obtained": number(obtained[inside].mean(), 4),
                }
            )
    varies = len(points) > 1 and predicted.std() > 0 and obtained.std() > 0
    every = -(-len(points) // MOST_SCATTERED) or 1
    return {
        "points": [
            {"episode": name, "t": seconds, "predicted": value, "obtained": score}
            for name, seconds, value, score in points[::every]
        ],
        "bins": bins,
        "count": len(points),
        "correlation": number(np.corrcoef(predicted, obtained)[0, 1], 4) if varies else None,
        "bias": number((predicted - obtained).mean(), 4) if points else None,
    }
