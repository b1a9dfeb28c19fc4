"""``cosmos episodes`` and ``cosmos recover``: the recorded episodes looked after."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cosmos_policy_ros.bags.messages import DECISION_TYPE
from cosmos_policy_ros.bags.writer import RECORDING
from cosmos_policy_ros.cli.compact import add_compact, run_compact
from cosmos_policy_ros.cli.shared import add_root, open_store, say_bytes, say_count, say_seconds
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.core.untrusted import escaped, shown
from cosmos_policy_ros.episodes.compact import is_compacted
from cosmos_policy_ros.episodes.episode import Episode, read_episode
from cosmos_policy_ros.episodes.folders import (
    EpisodeFolder,
    State,
    below,
    look,
    scan,
)
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.quality import load_limits
from cosmos_policy_ros.episodes.recovery import FolderInUseError, NothingToRecoverError, recover
from cosmos_policy_ros.episodes.store import EpisodeStore, delete, unwanted
from cosmos_policy_ros.episodes.table import Row, begun, read_rows
from cosmos_policy_ros.episodes.verify import Verification, store_quality, verify

HEAD = (
    "episode",
    "task",
    "outcome",
    "score",
    "success",
    "integrity",
    "seconds",
    "messages",
    "state",
)
RIGHT_ALIGNED = frozenset(("score", "seconds", "messages"))
METADATA = (
    "task",
    "prompt",
    "rig",
    "engine",
    "checkpoint",
    "checkpoint_digest",
    "seed",
    "operator_name",
    "package_version",
)
ID_HELP = "its id, or its number alone"


def add_episodes(parser: argparse.ArgumentParser) -> None:
    """Look after recorded episodes. Only purge deletes any, and compact puts video for images."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, act: Callable[[EpisodeStore, argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        add_root(added)
        added.set_defaults(run=lambda options: act(open_store(options.root), options))
        return added

    listed = command("list", _list, "A table of the episodes, oldest first.")
    listed.add_argument("--task", help="of this task only")
    listed.add_argument("--since", type=_date, help="2026-11-22, 2026-11-22T10:30, today or 7d")
    scored = listed.add_mutually_exclusive_group()
    scored.add_argument("--scored", action="store_true", default=None, help="with a score only")
    scored.add_argument("--unscored", dest="scored", action="store_false", help="without a score")
    listed.add_argument("--go", action="store_true", help="with quality verdict GO only")
    listed.add_argument("--all", action="store_true", help="discarded ones too")

    show = command("show", _show, "Everything that is known of one episode.")
    show.add_argument("id", nargs="?", default="", help=f"{ID_HELP} (the newest)")

    relabel = command("relabel", _relabel, "Score an episode again; its history stays.")
    relabel.add_argument("id", help=ID_HELP)
    relabel.add_argument("score", type=float, nargs="?", help="0 to 100; or name the stages")
    relabel.add_argument(
        "--stage", action="append", default=[], metavar="NAME", help="one reached; repeat it"
    )
    relabel.add_argument(
        "--deduction", action="append", default=[], metavar="NAME", help="one charged; repeat it"
    )
    relabel.add_argument(
        "--success",
        action=argparse.BooleanOptionalAction,
        help="whether the task was done (as in the score before)",
    )
    relabel.add_argument("--operator", default="", help="who says so")
    relabel.add_argument("--note", default="", help="free text")

    discard = command("discard", _discard, "Mark an episode as not to be used; its files stay.")
    discard.add_argument("id", help=ID_HELP)
    discard.add_argument("--reason", required=True, help="kept with the episode")
    discard.add_argument("--operator", default="", help="who says so")

    purge = command("purge", _purge, "Delete the discarded episodes for good, after asking.")
    purge.add_argument("--yes", action="store_true", help="do not ask")

    small = command("compact", run_compact, "Make the camera images video, a tenth of the disk.")
    add_compact(small, ID_HELP)

    check = command("verify", _verify, "Read episodes whole and name everything that is wrong.")
    check.add_argument("ids", nargs="*", metavar="ID", help=ID_HELP)
    check.add_argument("--all", action="store_true", help="every episode, discarded ones too")
    check.add_argument("--write", action="store_true", help="store the verdict that was found")


def _date(text: str) -> datetime:
    today = datetime.now().replace(hour=0, minute=0, second=0, microsecond=0)
    if text == "today":
        return today
    if text.endswith("d") and text[:-1].isdecimal():
        return today - timedelta(days=int(text[:-1]))
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no date; write 2026-11-22, 2026-11-22T10:30, today or 7d"
        ) from None


def _list(store: EpisodeStore, options: argparse.Namespace) -> int:
    rows = read_rows(
        store,
        task=options.task,
        since=options.since,
        scored=options.scored,
        go=options.go,
        discarded=options.all,
    )
    if not rows:
        print(f"{store.root}: no such episode among {len(store.episodes())}")
        return 0
    print(format_table(rows))
    seconds = sum(row.episode.duration_ns for row in rows if row.episode) / NS_PER_S
    unreadable = sum(row.wrong for row in rows)
    tail = f", {unreadable} of them not readable" if unreadable else ""
    print(f"{say_count(len(rows), 'episode')}, {say_seconds(seconds)}{tail}")
    return int(unreadable > 0)


def format_table(rows: Sequence[Row]) -> str:
    """Return the rows under a head, one line each; one that cannot be read says why."""
    cells: dict[Path, tuple[str, ...]] = {}
    for row in rows:
        if (episode := row.episode) is not None:
            score = episode.score
            cells[row.folder.path] = (
                row.id,
                shown(episode.metadata.task),
                shown(episode.outcome) or "-",
                f"{score.points:g}" if score else "-",
                "-" if score is None else "yes" if score.success else "no",
                "GO" if episode.quality.go else "NO-GO",
                f"{episode.duration_ns / NS_PER_S:.1f}",
                str(sum(topic.count for topic in episode.topics.values())),
                row.state or "-",
            )
    columns = zip(HEAD, *cells.values(), strict=True)
    widths = [max(map(len, column)) for column in columns]
    widths[0] = max(len(row.id) for row in rows)

    def line(texts: Sequence[str]) -> str:
        padded = (
            f"{text:>{width}}" if head in RIGHT_ALIGNED else f"{text:<{width}}"
            for head, text, width in zip(HEAD, texts, widths, strict=True)
        )
        return "  ".join(padded).rstrip()

    lines = [line(HEAD)]
    for row in rows:
        if row.folder.path in cells:
            lines.append(line(cells[row.folder.path]))
        else:
            lines.append(f"{row.id:<{widths[0]}}  {row.state}: {escaped(row.trouble)}")
    return "\n".join(lines)


def _show(store: EpisodeStore, options: argparse.Namespace) -> int:
    print("\n".join(_describe(read_episode(store.find(options.id)))))
    return 0


def _describe(episode: Episode) -> Iterator[str]:
    """Yield metadata, state, quality, labels and topics, a line each."""

    def field(name: str, value: object) -> str:
        return f"  {name:<18}{value}"

    yield episode.id
    start = begun(episode.id)
    if start is not None:
        yield field("begun", f"{start:%A} {start.day} {start:%B %Y, %H:%M:%S}")
    yield field("lasted", say_seconds(episode.duration_ns / NS_PER_S))
    yield field("ended by", episode.outcome or "-")
    if episode.discarded:
        yield field("discarded", episode.discard_reason)
    if episode.recovered:
        yield field("recovered", episode.recovered)
    size = say_bytes(_folder_bytes(episode.path))
    yield field("folder", f"{escaped(str(episode.path))} ({size})")
    if is_compacted(episode):
        yield field("compacted", "its images are video, no longer those that were decided on")
    for name in METADATA:
        value = escaped(str(getattr(episode.metadata, name)))
        yield field(name.removesuffix("_name").replace("_", " "), value)

    yield field("integrity", "GO" if episode.quality.go else "NO-GO")
    for reason in episode.quality.reasons:
        yield field("", reason)

    yield field("score", f"{episode.score.points:g} of 100" if episode.score else "none yet")
    for label in episode.labels:
        # A simulated clock begins at zero; its times would only mislead.
        given = datetime.fromtimestamp(label.stamp_ns / NS_PER_S)
        when = f"{given:%Y-%m-%d %H:%M:%S}" if given.year > 2000 else ""
        said = {
            "score": f"{label.points:g}, {'success' if label.success else 'no success'}",
            "stage": f"+{label.points:g} {label.item}",
            "deduction": f"-{label.points:g} {label.item}",
            "discard": "discarded",
        }[label.kind]
        parts = (f"#{label.revision}", when, label.operator_name, f"{label.kind}:", said)
        yield field("", "  ".join(filter(None, (*parts, label.note))))

    decisions = [t.count for t in episode.topics.values() if t.msgtype == DECISION_TYPE]
    yield field("decisions", str(sum(decisions)))
    counts = {name: str(topic.count) for name, topic in sorted(episode.topics.items())}
    names, numbers = max(map(len, counts)), max(map(len, counts.values()))
    for name, count in counts.items():
        yield f"  {name:<{names}}  {count:>{numbers}}  {episode.topics[name].msgtype}"


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _relabel(store: EpisodeStore, options: argparse.Namespace) -> int:
    episode = read_episode(store.find(options.id))
    success = options.success
    if success is None:
        if episode.score is None:
            raise RolloutError("say --success or --no-success: the episode has no score yet")
        success = episode.score.success
    operator_score = OperatorScore(
        options.score,
        success,
        tuple(options.stage),
        tuple(options.deduction),
        options.operator,
        options.note,
    )
    label = store.score(operator_score, episode=episode.path.name)[-1]
    done = "success" if label.success else "no success"
    before = f", before {episode.score.points:g}" if episode.score else ""
    print(f"{episode.id}: {label.points:g} of 100, {done} (revision {label.revision}{before})")
    return 0


def _discard(store: EpisodeStore, options: argparse.Namespace) -> int:
    folder = store.find(options.id)
    path = store.discard(options.reason, operator_name=options.operator, episode=folder.name)
    title = look(path).title
    print(f"{title} is marked as discarded; its files stay in {escaped(str(path))}")
    return 0


def _purge(store: EpisodeStore, options: argparse.Namespace) -> int:
    folders = unwanted(store.root)
    if not folders:
        print(f"{store.root}: no episode is discarded; nothing to delete")
        return 0
    for folder in folders:
        print(f"{escaped(folder.name)}  {say_bytes(_folder_bytes(folder))}")
    total = say_bytes(sum(map(_folder_bytes, folders)))
    if not options.yes:
        question = f"Delete {say_count(len(folders), 'folder')} for good, {total}? Type yes: "
        print(question, end="", flush=True)
        if sys.stdin.readline().strip() != "yes":
            print("nothing was deleted")
            return 1
    failed = 0
    for folder in folders:
        try:
            delete(folder)
        except RolloutError as error:
            print(f"error: {escaped(str(error))}", file=sys.stderr, flush=True)
            failed += 1
    left = f", {failed} of them not" if failed else f", {total}"
    print(f"deleted {say_count(len(folders), 'folder')}{left}")
    return int(failed > 0)


def _verify(store: EpisodeStore, options: argparse.Namespace) -> int:
    if bool(options.ids) == options.all:
        raise RolloutError("name the episodes to verify, or --all, not both")
    folders = [store.find(name) for name in options.ids]
    passed = (State.FOREIGN, State.ORIGINAL, State.PURGED)
    folders = folders or [each.path for each in scan(store.root) if each.state not in passed]
    limits = load_limits()
    failed = sum(not _verify_one(verify(folder, limits), options.write) for folder in folders)
    if len(folders) > 1:
        print(f"{len(folders)} episodes verified, {failed} with problems")
    return int(failed > 0)


def _verify_one(found: Verification, write: bool) -> bool:
    """Print what was found; return whether the episode is sound now."""
    name = escaped(found.path.name)
    if not found.problems:
        quality = found.quality.text if found.quality else "not judged"
        print(f"{name}: sound, {found.messages} messages, {quality}", flush=True)
        return True
    print(f"{name}: {say_count(len(found.problems), 'problem')}")
    for problem in (*found.problems, *filter(None, [found.advice])):
        print(f"  {escaped(problem)}", flush=True)
    if not (write and found.stale):
        return False
    store_quality(found)
    print(f"  the new verdict is stored, revised from {found.messages} messages", flush=True)
    return len(found.problems) == 1


def add_recover(parser: argparse.ArgumentParser) -> None:
    """Make episodes readable that are not, as far as they are whole.

    What a recorder that died has left, an episode that lost its metadata.yaml or a part of a file,
    one in another storage or compressed. Nothing is deleted, and what a living recorder holds is
    left alone. Afterwards judge it: episodes verify --write ID.
    """
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path("rollouts"),
        help="folder of an episode, or one with episodes somewhere below it (rollouts)",
    )
    parser.set_defaults(run=_recover)


def _recover(options: argparse.Namespace) -> int:
    folder = options.folder.expanduser()
    own = look(folder)
    if own.state is not State.NO_BAG or folder.name.endswith(RECORDING):
        return int(not _recover_one(own, alone=True))
    if not folder.is_dir():
        raise RolloutError(f"{folder}: is no folder; give the folder of the episodes")
    tried = failed = 0
    for each in below(folder):
        if each.state in (State.FINISHED, State.DISCARDED) and not each.remark:
            continue
        if each.state in (State.ORIGINAL, State.PURGED):
            continue
        tried += 1
        failed += not _recover_one(each, alone=False)
    if not tried:
        print(f"{folder}: no episode below it needs to be recovered")
    return int(failed > 0)


def _recover_one(found: EpisodeFolder, *, alone: bool) -> bool:
    """Recover an episode, and say what became of it; return whether nothing is left to do."""
    if found.state is State.FOREIGN and not alone:
        print(f"left alone: {escaped(f'{found.path}: {found.trouble}')}", flush=True)
        return True
    try:
        recovered = recover(found.path)
    except NothingToRecoverError as error:
        print(escaped(str(error)), flush=True)
        return True
    except FolderInUseError as error:
        print(f"left alone: {escaped(str(error))}", flush=True)
        return not alone
    except RolloutError as error:
        print(f"error: {escaped(str(error))}", file=sys.stderr, flush=True)
        return False
    path = escaped(str(recovered.path))
    print(f"recovered {path}: {recovered.messages} messages", flush=True)
    print(f"  lost: {escaped(recovered.loss)}", flush=True)
    if recovered.original is not None:
        kept = escaped(recovered.original.name)
        print(f"  what it was made of is kept as {kept}; 'episodes purge' deletes it", flush=True)
    return True
