"""What ``cosmos episodes`` does: the recorded episodes listed, shown, relabelled, verified."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta

from cosmos_policy_ros.bags.messages import Label
from cosmos_policy_ros.cli.shared import (
    Filter,
    add_root,
    begun,
    find,
    folder_bytes,
    format_table,
    open_store,
    parse,
    read_rows,
    run,
    say_bytes,
    say_count,
    say_seconds,
)
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.episodes.episode import Episode, bare_id, read_episode
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.quality import load_limits
from cosmos_policy_ros.episodes.store import EpisodeStore, delete, discarded
from cosmos_policy_ros.episodes.topics import DECISION_TYPE
from cosmos_policy_ros.episodes.verify import Verification, store_quality, verify

# Everything that is known of one episode, as text for a terminal.


_TEXTS = (
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


def format_episode(episode: Episode) -> str:
    """Return metadata, state, verdict, labels and topics, a line each."""
    return "\n".join([*_head(episode), *_verdict(episode), *_labels(episode), *_topics(episode)])


def _head(episode: Episode) -> Iterator[str]:
    yield episode.id
    start = begun(episode.id)
    if start is not None:
        yield _field("begun", f"{start:%A} {start.day} {start:%B %Y, %H:%M:%S}")
    yield _field("lasted", say_seconds(episode.duration_ns / NS_PER_S))
    yield _field("ended by", episode.outcome or "-")
    if episode.discarded:
        yield _field("discarded", episode.discard_reason)
    if episode.recovered:
        yield _field("recovered", episode.recovered)
    yield _field("folder", f"{episode.path} ({say_bytes(folder_bytes(episode.path))})")
    for name in _TEXTS:
        yield _field(name.removesuffix("_name").replace("_", " "), getattr(episode.metadata, name))


def _verdict(episode: Episode) -> Iterator[str]:
    yield _field("integrity", "GO" if episode.quality.go else "NO-GO")
    for reason in episode.quality.reasons:
        yield _field("", reason)


def _labels(episode: Episode) -> Iterator[str]:
    score = episode.score
    yield _field("score", f"{score.points:g} of 100" if score else "none yet")
    for label in episode.labels:
        yield _field("", _label(label))


def _label(label: Label) -> str:
    # A simulated clock begins at zero; its times would only mislead.
    given = datetime.fromtimestamp(label.stamp_ns / NS_PER_S)
    when = f"{given:%Y-%m-%d %H:%M:%S}" if given.year > 2000 else ""
    said = {
        "score": f"{label.points:g}, {'success' if label.success else 'no success'}",
        "stage": f"+{label.points:g} {label.item}",
        "deduction": f"-{label.points:g} {label.item}",
        "discard": "discarded",
    }[label.kind]
    parts = (f"#{label.revision}", when, label.operator_name, f"{label.kind}:", said, label.note)
    return "  ".join(filter(None, parts))


def _topics(episode: Episode) -> Iterator[str]:
    decisions = [t.count for t in episode.topics.values() if t.msgtype == DECISION_TYPE]
    yield _field("decisions", str(sum(decisions)))
    counts = {name: str(topic.count) for name, topic in sorted(episode.topics.items())}
    names, numbers = max(map(len, counts)), max(map(len, counts.values()))
    for name, count in counts.items():
        yield f"  {name:<{names}}  {count:>{numbers}}  {episode.topics[name].msgtype}"


def _field(name: str, value: object) -> str:
    return f"  {name:<18}{value}"


Command = Callable[[EpisodeStore, argparse.Namespace], int]
_ID_HELP = "its id, or its number alone"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cosmos episodes``; returns the exit code."""
    options = _parse(arguments)
    command: Command = options.command
    return run(lambda: command(open_store(options.root), options))


def _list(store: EpisodeStore, options: argparse.Namespace) -> int:
    wanted = Filter(options.task, options.since, options.scored, options.go, options.all)
    rows = read_rows(store, wanted)
    if not rows:
        print(f"{store.root}: no such episode among {len(store.episodes())}")
        return 0
    print(format_table(rows))
    seconds = sum(row.episode.duration_ns for row in rows if row.episode) / 1e9
    unreadable = sum(row.episode is None for row in rows)
    tail = f", {unreadable} of them not readable" if unreadable else ""
    print(f"{say_count(len(rows), 'episode')}, {say_seconds(seconds)}{tail}")
    return 0


def _show(store: EpisodeStore, options: argparse.Namespace) -> int:
    print(format_episode(read_episode(find(store, options.id))))
    return 0


def _relabel(store: EpisodeStore, options: argparse.Namespace) -> int:
    episode = read_episode(find(store, options.id))
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
    label = store.score(operator_score, episode=episode.id)[-1]
    done = "success" if label.success else "no success"
    before = f", before {episode.score.points:g}" if episode.score else ""
    print(f"{episode.id}: {label.points:g} of 100, {done} (revision {label.revision}{before})")
    return 0


def _discard(store: EpisodeStore, options: argparse.Namespace) -> int:
    folder = find(store, options.id)
    path = store.discard(options.reason, operator_name=options.operator, episode=folder.name)
    print(f"{bare_id(folder.name)} is marked as discarded; its files stay in {path}")
    return 0


def _purge(store: EpisodeStore, options: argparse.Namespace) -> int:
    folders = discarded(store.root)
    if not folders:
        print(f"{store.root}: no episode is discarded; nothing to delete")
        return 0
    for folder in folders:
        print(f"{folder.name}  {say_bytes(folder_bytes(folder))}")
    total = say_bytes(sum(map(folder_bytes, folders)))
    question = f"Delete {say_count(len(folders), 'episode')} for good, {total}? Type yes: "
    if not options.yes and not _confirmed(question):
        print("nothing was deleted")
        return 1
    for folder in folders:
        delete(folder)
    print(f"deleted {say_count(len(folders), 'episode')}, {total}")
    return 0


def _confirmed(question: str) -> bool:
    print(question, end="", flush=True)
    return sys.stdin.readline().strip() == "yes"


def _verify(store: EpisodeStore, options: argparse.Namespace) -> int:
    if bool(options.ids) == options.all:
        raise RolloutError("name the episodes to verify, or --all, not both")
    folders = [find(store, name) for name in options.ids] or list(store.episodes().values())
    limits = load_limits()
    failed = sum(not _verify_one(verify(folder, limits), options.write) for folder in folders)
    if len(folders) > 1:
        print(f"{len(folders)} episodes verified, {failed} with problems")
    return int(failed > 0)


def _verify_one(found: Verification, write: bool) -> bool:
    """Tell what was found; return whether nothing is left to complain of."""
    name = found.path.name
    if not found.problems:
        quality = found.quality.text if found.quality else "not judged"
        print(f"{name}: sound, {found.messages} messages, {quality}", flush=True)
        return True
    print(f"{name}: {say_count(len(found.problems), 'problem')}")
    for problem in found.problems:
        print(f"  {problem}", flush=True)
    if not (write and found.stale):
        return False
    store_quality(found)
    print(f"  the new verdict is stored, revised from {found.messages} messages", flush=True)
    return len(found.problems) == 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cosmos episodes",
        description="Look after recorded episodes. Only purge deletes anything.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, act: Command, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        add_root(added)
        added.set_defaults(command=act)
        return added

    _add_list(command("list", _list, "A table of the episodes, oldest first."))
    show = command("show", _show, "Everything that is known of one episode.")
    show.add_argument("id", nargs="?", default="", help=f"{_ID_HELP} (the newest)")
    _add_relabel(command("relabel", _relabel, "Score an episode again; its history stays."))
    discard = command("discard", _discard, "Mark an episode as not to be used; its files stay.")
    discard.add_argument("id", help=_ID_HELP)
    discard.add_argument("--reason", required=True, help="kept with the episode")
    discard.add_argument("--operator", default="", help="who says so")
    purge = command("purge", _purge, "Delete the discarded episodes for good, after asking.")
    purge.add_argument("--yes", action="store_true", help="do not ask")
    check = command("verify", _verify, "Read episodes whole and name everything that is wrong.")
    check.add_argument("ids", nargs="*", metavar="ID", help=_ID_HELP)
    check.add_argument("--all", action="store_true", help="every episode, discarded ones too")
    check.add_argument("--write", action="store_true", help="store the verdict that was found")
    return parse(parser, arguments)


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", default="", help="of this task only")
    parser.add_argument("--since", type=_date, help="2026-11-22, 2026-11-22T10:30, today or 7d")
    scored = parser.add_mutually_exclusive_group()
    scored.add_argument("--scored", action="store_true", default=None, help="with a score only")
    scored.add_argument("--unscored", dest="scored", action="store_false", help="without a score")
    parser.add_argument("--go", action="store_true", help="with quality verdict GO only")
    parser.add_argument("--all", action="store_true", help="discarded ones too")


def _add_relabel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help=_ID_HELP)
    parser.add_argument("score", type=float, nargs="?", help="0 to 100; or name the stages")
    parser.add_argument(
        "--stage", action="append", default=[], metavar="NAME", help="one reached; repeat it"
    )
    parser.add_argument(
        "--deduction", action="append", default=[], metavar="NAME", help="one charged; repeat it"
    )
    parser.add_argument(
        "--success",
        action=argparse.BooleanOptionalAction,
        help="whether the task was done (as in the score before)",
    )
    parser.add_argument("--operator", default="", help="who says so")
    parser.add_argument("--note", default="", help="free text")


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
