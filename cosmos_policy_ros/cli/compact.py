"""``cosmos episodes compact``: the images of recorded episodes become video."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from cosmos_policy_ros.cli.shared import GOES_ON, say_bytes, say_count
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.untrusted import escaped
from cosmos_policy_ros.episodes.compact import Compacted, CompactionConfig, compact, load_compaction
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.episodes.table import read_rows


def add_compact(parser: argparse.ArgumentParser, id_help: str) -> None:
    """Add the options, but for the folder of the episodes."""
    parser.add_argument("ids", nargs="*", metavar="ID", help=id_help)
    parser.add_argument("--all", action="store_true", help="every finished episode")
    parser.add_argument("--scored", action="store_true", help="every one that has a score")
    parser.set_defaults(interrupted=GOES_ON)
    crf = load_compaction().crf
    parser.add_argument(
        "--crf", type=int, help=f"x264's rate factor; less is better and larger ({crf})"
    )


def run_compact(store: EpisodeStore, options: argparse.Namespace) -> int:
    """Compact episodes, one after the other; one that cannot be compacted stays as it is."""
    if bool(options.ids) == (options.all or options.scored):
        raise RolloutError("name the episodes to compact, or --all or --scored, not both")
    config = load_compaction()
    if options.crf is not None:
        try:
            config = replace(config, crf=options.crf)
        except ValueError as error:
            raise RolloutError(f"--{error}") from None
    if options.ids:
        folders = [store.find(name) for name in options.ids]
    else:
        rows = read_rows(store, scored=True if options.scored and not options.all else None)
        folders = [row.folder.path for row in rows if row.episode is not None]
    done: list[Compacted] = []
    before = failed = 0
    for folder in folders:
        try:
            found = _compact_one(folder, config)
        except RolloutError as error:
            print(f"error: {escaped(str(error))}", file=sys.stderr, flush=True)
            failed += 1
            continue
        before += found is None
        done += [found] if found is not None else []
    if len(folders) != 1:
        print(_total(done, before, failed))
    return int(failed > 0)


def _compact_one(folder: Path, config: CompactionConfig) -> Compacted | None:
    name = escaped(folder.name)
    with tqdm(desc=name, unit=" images", leave=False, disable=None, mininterval=0.5) as bar:

        def progress(count: int, total: int) -> None:
            bar.total = total
            bar.update(count - bar.n)

        found = compact(folder, config, progress)
    if found is None:
        print(f"{name}: was compacted before", flush=True)
        return None
    print(
        f"{name}: {_sizes(found.bytes_before, found.bytes_after)}, "
        f"{say_count(found.images, 'image')}, PSNR at least {found.least_psnr:.1f} dB, "
        f"{found.mean_psnr:.1f} in the mean",
        flush=True,
    )
    return found


def _total(done: list[Compacted], before: int, failed: int) -> str:
    parts = [f"{say_count(len(done), 'episode')} compacted"]
    if done:
        sizes = (sum(each.bytes_before for each in done), sum(each.bytes_after for each in done))
        parts[0] += f", {_sizes(*sizes)}"
    parts += [f"{before} compacted before"] if before else []
    parts += [f"{failed} left as they were"] if failed else []
    return "; ".join(parts)


def _sizes(before: int, after: int) -> str:
    share = f" ({after / before:.0%})" if before else ""
    return f"{say_bytes(before)} became {say_bytes(after)}{share}"
