"""An episode whose recorder died: made a bag again, with what was lost said in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rig.untrusted import UnreadableError, reading
from cosmos_policy_ros.rollouts.bag_metadata import (
    METADATA,
    describe_bag,
    read_metadata,
    write_metadata,
)
from cosmos_policy_ros.rollouts.bag_writer import EPISODE_TOPIC, RECORDING
from cosmos_policy_ros.rollouts.durable import Hold, rename, sync
from cosmos_policy_ros.rollouts.episode import OUTCOME, RECOVERED, bare_id
from cosmos_policy_ros.rollouts.mcap_file import to_yaml
from cosmos_policy_ros.rollouts.mcap_repair import Whole, contents_of, mend, survey
from cosmos_policy_ros.rollouts.messages import EpisodeFacts, decode_facts
from cosmos_policy_ros.rollouts.recording import FLUSH_PERIOD
from cosmos_policy_ros.rollouts.types import types_of_definition


class RecordingInProgressError(RolloutError):
    """The episode belongs to a recorder that lives."""


@dataclass(frozen=True)
class Recovered:
    """An episode that was made whole again: its folder, its messages, and what is missing."""

    path: Path
    messages: int
    loss: str


def recover(folder: Path) -> Recovered:
    """Finish ``<episode_id>.recording`` in place and give it its real name. Nothing is deleted.

    Raises:
        RolloutError: it is being recorded, or nothing in it can be read, or the disk refused; the
            folder stays as it is then, and can be recovered again.
    """
    # Whatever a damaged file makes a parser raise, a recorder that starts goes on to the next.
    with reading(folder, "an unfinished episode", RolloutError, "left as it is"):
        if folder.is_symlink() or not folder.is_dir():
            raise UnreadableError("is no folder, so no recorder made it")
        try:
            hold = Hold(folder)
        except BlockingIOError:
            raise RecordingInProgressError(
                f"{folder}: is being recorded by a recorder that lives"
            ) from None
        try:
            return _recover(folder)
        except RolloutError as error:
            if str(folder) in str(error):
                raise
            raise RolloutError(f"{folder}: {error}; left as it is") from error
        finally:
            hold.release()


def _recover(folder: Path) -> Recovered:
    """Look at everything first: a folder that cannot be recovered stays as it is."""
    final = folder.with_name(bare_id(folder.name))
    file = folder / f"{final.name}_0.mcap"
    if file.is_symlink() or not file.is_file():
        raise RolloutError(f"{folder}: has no {file.name}, so there is nothing to recover")
    whole = survey(file)
    loss = _describe_loss(whole)
    contents = contents_of(file.name, whole)
    information = None
    if not (folder / METADATA).exists():
        notes = {**_facts(file, whole).custom_data(), OUTCOME: "its recorder died"}
        information = describe_bag(contents, {**notes, RECOVERED: loss})
        to_yaml(information)  # what cannot be written shows here
    else:  # it died between the last write and the folder's real name
        read_metadata(folder)
    try:
        mend(file, whole)
        if information is not None:
            write_metadata(folder, information)
        sync(folder)
        rename(folder, final)
    except OSError as error:
        raise RolloutError(
            f"{folder}: cannot be recovered now: {error}; free disk space, or make the folder "
            f"writable, and recover it again"
        ) from error
    return Recovered(final, sum(contents.counts.values()), loss)


def _facts(file: Path, whole: Whole) -> EpisodeFacts:
    for channel in whole.channels.values():
        if channel.topic == EPISODE_TOPIC.name and channel.id in whole.first:
            schema = whole.schemas[channel.schema_id]
            types = types_of_definition(schema.name, schema.data.decode())
            return decode_facts(types, whole.first[channel.id].data)
    raise RolloutError(f"{file}: has no message on '{EPISODE_TOPIC.name}'; it is no episode")


def _describe_loss(whole: Whole) -> str:
    if whole.finished:
        return "nothing: its recorder died after its last message was written"
    torn = f"{whole.cut_bytes} bytes of a torn chunk were cut off" if whole.cut_bytes else ""
    unwritten = f"up to {FLUSH_PERIOD:g} s before its recorder died were not yet written"
    return "; ".join(filter(None, (unwritten, torn)))


def unfinished(root: Path) -> tuple[Path, ...]:
    """Return what of a store looks like an unfinished episode, oldest first, be it a folder or not.

    Raises:
        RolloutError: the root folder cannot be listed.
    """
    with reading(root, "a folder of episodes", RolloutError):
        return tuple(sorted(path for path in root.iterdir() if path.name.endswith(RECORDING)))
