"""Where the parts of a published or fine-tuned checkpoint are: in a folder or on Hugging Face."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from cosmos_policy_ros.errors import CheckpointError, ConfigError
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.files import Release
from cosmos_policy_ros.model.weights import is_distributed
from cosmos_policy_ros.rig.config import did_you_mean
from cosmos_policy_ros.rig.share import config_folder

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
STATISTICS_PATTERN = "*dataset_statistics.json"
PROMPTS_PATTERN = "*t5_embeddings.pkl"
WEIGHTS_PATTERNS = ("*.pt", "model/*.pt", "model/*.distcp", "model/.metadata")

# Fetches the files of a repository that match the patterns; returns the folder they lie in.
Download = Callable[[str, Sequence[str]], Path]


@dataclass(frozen=True)
class Parts:
    """The parts of one checkpoint; None where it was not found (or not given).

    Attributes:
        weights: the transformer's file, or the folder of a distributed checkpoint.
        vae: the video autoencoder's file.
        statistics: the ranges' JSON.
        prompts: the published pickle, or a ``text.safetensors``.
        config: the ``config.yaml`` that describes it.
    """

    weights: Path | None = None
    vae: Path | None = None
    statistics: Path | None = None
    prompts: Path | None = None
    config: Path | None = None

    def missing(self) -> tuple[str, ...]:
        """Return the names of the parts that are None."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is None)

    def filled(self, other: Parts) -> Parts:
        """Return these parts, with those of ``other`` where one is None."""
        merged = {f.name: getattr(self, f.name) or getattr(other, f.name) for f in fields(self)}
        return Parts(**merged)


def find_parts(source: str, given: Parts, download: Download) -> Parts:
    """Find every part of a checkpoint.

    Args:
        source: a folder, or the name of a repository on Hugging Face.
        given: parts that the operator named; nothing is looked for in their stead.
        download: how to reach Hugging Face.

    Raises:
        CheckpointError: a part is missing or there are several; says which, where it is published
            and how to name it.
    """
    folder = Path(source).expanduser()
    release = files.release_at(folder)
    if folder.is_dir():
        found = given.filled(_in_folder(folder, given))
    elif folder.exists():
        raise CheckpointError(
            f"'{source}' is a file; give the folder it lies in, or an empty one with --weights"
        )
    elif REPOSITORY.fullmatch(source):
        found = _on_hub(source, release, given, download)
    else:
        raise CheckpointError(
            f"'{source}' is neither a folder nor a repository like {files.RELEASES[0].repository}"
        )
    if release is not None:
        found = found.filled(Parts(config=shipped_config(release.config)))
    if found.missing():
        raise CheckpointError(_describe_missing(source, found))
    return found


def shipped_config(name: str) -> Path:
    """Return ``config/models/<name>/config.yaml``, or the path itself if it looks like one.

    Raises:
        ConfigError: there is none; names those there are.
    """
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        path = config_folder("models") / name / files.CONFIG
    if not path.is_file():
        known = [p.parent.name for p in config_folder("models").glob(f"*/{files.CONFIG}")]
        raise ConfigError(f"there is no model config '{name}'{did_you_mean(name, known)}")
    return path


def hub_download(repository: str, patterns: Sequence[str]) -> Path:
    """Fetch files into Hugging Face's cache, where a second call finds them.

    Raises:
        CheckpointError: offline, no such repository, or its licence was not accepted.
    """
    hub = importlib.import_module("huggingface_hub")
    try:
        return Path(hub.snapshot_download(repository, allow_patterns=list(patterns)))
    # The hub's client passes on the errors of whichever network library it uses today.
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{repository} cannot be downloaded from Hugging Face ({reason}); wanted are "
            f"{', '.join(patterns)}, besides {files.VAE_FILE} from {files.VAE_REPOSITORY}. Without "
            f"a network, copy these files into one folder and give that instead; if the licence "
            f"must be accepted, do so on its page and run 'hf auth login'"
        ) from error


def _in_folder(folder: Path, given: Parts) -> Parts:
    """Look where published folders and fine-tunings have their parts; parts given are skipped."""
    beside = [folder, folder.parent] if is_distributed(folder) else [folder]

    def look(name: str, *patterns: str) -> Path | None:
        if getattr(given, name) is not None:
            return None
        return _only(name, [p for place in beside for q in patterns for p in place.glob(q)])

    return Parts(
        weights=None if given.weights else _weights_in(folder),
        vae=look("vae", Path(files.VAE_FILE).name, files.VAE_FILE),
        statistics=look("statistics", STATISTICS_PATTERN),
        prompts=look("prompts", PROMPTS_PATTERN, files.TEXT),
        config=look("config", files.CONFIG),
    )


def _weights_in(folder: Path) -> Path | None:
    for place in (folder, folder / "model"):
        if is_distributed(place):
            return place
        found = _only("weights", list(place.glob("*.pt")))
        if found:
            return found
    return None


def _only(name: str, found: Sequence[Path]) -> Path | None:
    if len(found) > 1:
        raise CheckpointError(
            f"several files could be the {name}: {', '.join(map(str, sorted(found)))}; choose one "
            f"with --{name}"
        )
    return found[0] if found else None


def _on_hub(repository: str, release: Release | None, given: Parts, download: Download) -> Parts:
    patterns: tuple[str, ...] = (*WEIGHTS_PATTERNS, STATISTICS_PATTERN, PROMPTS_PATTERN)
    if release is not None and release.files:
        patterns = release.files
    found = given.filled(_in_folder(download(repository, patterns), given))
    if release is not None and release.companion:
        others = (STATISTICS_PATTERN, PROMPTS_PATTERN)
        found = found.filled(_in_folder(download(release.companion, others), found))
    if found.vae is None:
        folder = download(files.VAE_REPOSITORY, (files.VAE_FILE,))
        found = found.filled(Parts(vae=folder / files.VAE_FILE))
    return found


def _describe_missing(source: str, found: Parts) -> str:
    published = files.RELEASES[0]
    help_of = {
        "weights": "a .pt file or a folder with a distributed checkpoint",
        "vae": f"{Path(files.VAE_FILE).name}, published as {files.VAE_FILE} in "
        f"{files.VAE_REPOSITORY}",
        "statistics": f"{STATISTICS_PATTERN}, published as {published.files[1]} in "
        f"{published.repository}",
        "prompts": f"{PROMPTS_PATTERN} or {files.TEXT}, published as {published.files[2]} in "
        f"{published.repository}",
        "config": f"the kind of model, like {published.config}",
    }
    told = "; ".join(f"--{name}: {help_of[name]}" for name in found.missing())
    return f"'{source}' lacks parts of a checkpoint. Put them there or name them: {told}"
