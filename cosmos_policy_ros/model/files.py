"""The files of a checkpoint folder. Imports no torch, so that a node can look before it leaps."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cosmos_policy_ros.errors import CheckpointError

CONFIG = "config.yaml"
STATISTICS = "dataset_statistics.json"
TEXT = "text.safetensors"
TRANSFORMER = "transformer.safetensors"
VAE = "vae.safetensors"

REQUIRED = (CONFIG, STATISTICS, TEXT)
WEIGHTS = (TRANSFORMER, VAE)

VAE_REPOSITORY = "nvidia/Cosmos-Predict2-2B-Video2World"
VAE_FILE = "tokenizer/tokenizer.pth"


@dataclass(frozen=True)
class Release:
    """One checkpoint as NVIDIA publishes it on Hugging Face.

    Attributes:
        repository: owner and name.
        files: those a policy is made of; the video autoencoder lives in another repository.
    """

    repository: str
    files: tuple[str, ...]


RELEASES = (
    Release(
        "nvidia/Cosmos-Policy-ALOHA-Predict2-2B",
        (
            "Cosmos-Policy-ALOHA-Predict2-2B.pt",
            "aloha_dataset_statistics.json",
            "aloha_t5_embeddings.pkl",
        ),
    ),
)


def describe_missing(path: str | Path) -> str | None:
    """Say what stands between ``path`` and a checkpoint folder that can be loaded.

    Returns:
        None when every needed file is there, else one message for the operator: what is missing,
        and for a published checkpoint its repository and files. Whether the files' content is
        right shows only on loading.
    """
    folder = Path(path)
    release = _release_at(folder)
    if release is not None:
        return (
            f"checkpoint '{path}' is NVIDIA's {release.repository} "
            f"({', '.join(release.files)}; and {VAE_FILE} from {VAE_REPOSITORY}) in its published "
            f"form; this version cannot convert it yet. A checkpoint is a folder with "
            f"{', '.join((*REQUIRED, *WEIGHTS))}"
        )
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        return f"checkpoint '{path}' {what}; expected a folder with {', '.join(REQUIRED)}"
    absent = [name for name in REQUIRED if not (folder / name).is_file()]
    if absent:
        return f"checkpoint '{path}' lacks {', '.join(absent)}; it needs {', '.join(REQUIRED)}"
    return _describe_half(folder)


def has_weights(path: str | Path) -> bool:
    """Return whether the folder holds both weight files; without them a model is random."""
    return all((Path(path) / name).is_file() for name in WEIGHTS)


def digest(path: str | Path) -> str:
    """Return the sha256 (hex) over the names and bytes of the folder's checkpoint files.

    Other files in the folder (a readme, say) do not count. Reads everything once: about a second
    per GB from a warm disk cache.

    Raises:
        CheckpointError: a needed file is missing or cannot be read.
    """
    problem = describe_missing(path)
    if problem is not None:
        raise CheckpointError(problem)
    sha = hashlib.sha256()
    for name in (*REQUIRED, *WEIGHTS):
        file = Path(path) / name
        if not file.is_file():
            continue
        try:
            size = file.stat().st_size
            sha.update(f"{name} {size}\n".encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    sha.update(block)
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error}") from error
    return sha.hexdigest()


def _describe_half(folder: Path) -> str | None:
    """Weights come in pairs: latents of one autoencoder mean nothing to another's transformer."""
    absent = [name for name in WEIGHTS if not (folder / name).is_file()]
    if len(absent) == 1:
        (present,) = set(WEIGHTS) - set(absent)
        return (
            f"checkpoint '{folder}' has {present} but not {absent[0]}; add it, or remove both to "
            f"run with random weights"
        )
    return None


def _release_at(folder: Path) -> Release | None:
    """Return the published checkpoint that the path names or holds, if it is one."""
    if (folder / CONFIG).is_file():
        return None
    for release in RELEASES:
        named = folder.name == release.repository.split("/")[1]
        if named or any((folder / name).is_file() for name in release.files):
            return release
    return None
