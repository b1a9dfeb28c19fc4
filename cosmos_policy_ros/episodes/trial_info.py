"""Which trial of an evaluation an episode is; who took part stays sealed until the end.

A sealed text is no secret: it keeps a name from the eye of an operator who looks through episodes,
so that scores are not swayed, and nothing is lost with a key, since the bag alone opens it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from cosmos_policy_ros.bags.messages import EpisodeMetadata
from cosmos_policy_ros.core.config import from_mapping
from cosmos_policy_ros.core.errors import ConfigError, RolloutError
from cosmos_policy_ros.core.untrusted import parse_json, reading

SALT = 16  # bytes
BLOCK = hashlib.sha256().digest_size
# Of an episode's metadata: they would tell which contender it is.
TELLING = ("engine", "checkpoint", "checkpoint_digest")


@dataclass(frozen=True)
class TrialInfo:
    """A trial of an evaluation, as a bag's metadata and ``StartEpisode`` carry it, in JSON.

    Attributes:
        evaluation: its name; empty in the simulator, whose folder says so.
        condition: of the initial state, such as in_distribution.
        state: number of the initial state within task and condition.
        contender: who took part; empty while it is sealed.
        sealed: contender and what else would tell, see :func:`seal`; empty where nothing is hidden.
    """

    evaluation: str
    condition: str
    state: int
    contender: str = ""
    sealed: str = ""

    def text(self) -> str:
        """Return one line of JSON."""
        return json.dumps({key: value for key, value in asdict(self).items() if value != ""})


def read_trial(metadata: EpisodeMetadata) -> TrialInfo | None:
    """Return which trial an episode is, None if it is none. Raises RolloutError: unreadable."""
    return parse_trial(metadata.trial) if metadata.trial else None


def parse_trial(text: str) -> TrialInfo:
    """Read :meth:`TrialInfo.text`. Raises RolloutError: it is no trial."""
    with reading("the trial of an episode", "trial", RolloutError):
        content = parse_json(text)
    if not isinstance(content, dict):
        raise RolloutError(f"trial: {text[:80]} is no mapping")
    try:
        return from_mapping(TrialInfo, {"evaluation": "", **content}, "trial")
    except ConfigError as error:
        raise RolloutError(str(error)) from error


def seal(content: Mapping[str, str]) -> str:
    """Return texts by name as one text that cannot be read at a glance."""
    plain = json.dumps(dict(content)).encode()
    salt = secrets.token_bytes(SALT)  # so that two episodes of one contender do not look alike
    return base64.b64encode(salt + _mixed(plain, salt)).decode()


def unseal(sealed: str) -> dict[str, str]:
    """Return what :func:`seal` was given. Raises RolloutError: it is no such text."""
    with reading("the seal of an episode", "seal", RolloutError):
        content = base64.b64decode(sealed, validate=True)
        salt, mixed = content[:SALT], content[SALT:]
        found = parse_json(_mixed(mixed, salt).decode())
    if not (isinstance(found, dict) and all(isinstance(each, str) for each in found.values())):
        raise RolloutError("the seal of an episode holds no texts by name")
    return found


def sealed_metadata(metadata: EpisodeMetadata) -> EpisodeMetadata:
    """Return metadata of a sealed trial with what would tell the contender within the seal."""
    trial = read_trial(metadata)
    if trial is None or not trial.sealed:
        return metadata
    telling = {name: str(getattr(metadata, name)) for name in TELLING}
    trial = replace(trial, sealed=seal({**unseal(trial.sealed), **telling}))
    return replace(metadata, trial=trial.text(), **dict.fromkeys(TELLING, ""))  # type: ignore[arg-type]


def opened_metadata(metadata: EpisodeMetadata) -> EpisodeMetadata:
    """Return metadata with what its trial's seal holds, if it has one. Raises RolloutError."""
    trial = read_trial(metadata)
    if trial is None or not trial.sealed:
        return metadata
    found = unseal(trial.sealed)
    opened = replace(trial, contender=found.get("contender", ""), sealed="")
    telling = {name: found.get(name, "") for name in TELLING}
    return replace(metadata, trial=opened.text(), **telling)  # type: ignore[arg-type]


def _mixed(content: bytes, salt: bytes) -> bytes:
    """Return bytes combined with a stream that the salt alone determines; twice is once more."""
    blocks = -(-len(content) // BLOCK)
    stream = b"".join(hashlib.sha256(salt + i.to_bytes(4, "big")).digest() for i in range(blocks))
    return bytes(a ^ b for a, b in zip(content, stream, strict=False))
