"""The files of a checkpoint folder. Imports no torch, so that a node can look before it leaps."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cosmos_policy_ros.core.errors import CheckpointError

CONFIG = "config.yaml"
STATISTICS = "dataset_statistics.json"
TEXT = "text.safetensors"
TRANSFORMER = "transformer.safetensors"
VAE = "vae.safetensors"
PROVENANCE = "provenance.json"  # where the folder comes from; nothing depends on it

REQUIRED = (CONFIG, STATISTICS, TEXT)
WEIGHTS = (TRANSFORMER, VAE)

VAE_REPOSITORY = "nvidia/Cosmos-Predict2-2B-Video2World"
VAE_FILE = "tokenizer/tokenizer.pth"


@dataclass(frozen=True)
class Release:
    """One checkpoint as NVIDIA publishes it on Hugging Face."""

    repository: str  # owner and name
    config: str  # the folder in ``config/models`` that describes it
    files: tuple[str, ...]  # whose names are known; the weights are any ``.pt`` of the repository
    companion: str = ""  # repository of the statistics and prompts where this one has none

    def command(self, source: str) -> str:
        """Return the command that converts it."""
        target = f"~/checkpoints/{self.repository.split('/')[1]}"
        return f"cosmos convert {source} {target}, then give checkpoint:={target}"


ALOHA = "nvidia/Cosmos-Policy-ALOHA-Predict2-2B"
RELEASES = (
    Release(
        ALOHA,
        "aloha_2b",
        (
            "Cosmos-Policy-ALOHA-Predict2-2B.pt",
            "aloha_dataset_statistics.json",
            "aloha_t5_embeddings.pkl",
        ),
    ),
    Release("nvidia/Cosmos-Policy-ALOHA-Planning-Model-Predict2-2B", "aloha_2b", (), ALOHA),
    Release(
        "nvidia/Cosmos-Policy-LIBERO-Predict2-2B",
        "libero_2b",
        ("libero_dataset_statistics.json", "libero_t5_embeddings.pkl"),
    ),
    Release(
        "nvidia/Cosmos-Policy-RoboCasa-Predict2-2B",
        "robocasa_2b",
        ("robocasa_dataset_statistics.json", "robocasa_t5_embeddings.pkl"),
    ),
)


def describe_missing(path: str | Path, *, unfinished: bool = False) -> str | None:
    """Say what stands between ``path`` and a checkpoint folder that can be loaded.

    Args:
        path: the folder.
        unfinished: accept the autoencoder's weights alone, as a training begins with.

    Returns:
        None when every needed file is there, else one message for the operator: what is missing,
        and for a published checkpoint its repository and files and the command that converts it.
        Whether the files' content is right shows only on loading.
    """
    folder = Path(path)
    if release := release_at(folder):
        named = any(name.endswith(".pt") for name in release.files)
        weights = () if named else ("one .pt file",)
        parts = [", ".join((*weights, *release.files))]
        if release.companion:
            parts.append(f"statistics and prompts from {release.companion}")
        parts.append(f"{VAE_FILE} from {VAE_REPOSITORY}")
        source = str(folder) if folder.is_dir() else release.repository
        return (
            f"checkpoint '{path}' is NVIDIA's {release.repository} ({'; '.join(parts)}) as it is "
            f"published. Convert it once: {release.command(source)}"
        )
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        return f"checkpoint '{path}' {what}; expected a folder with {', '.join(REQUIRED)}"
    absent = [name for name in REQUIRED if not (folder / name).is_file()]
    if absent:
        message = f"checkpoint '{path}' lacks {', '.join(absent)}; it needs {', '.join(REQUIRED)}"
        # A folder of config/models that only describes a release is easily taken for one.
        for release in RELEASES:
            if folder.name == release.config:
                message += (
                    f". It only describes a published checkpoint; convert that once: "
                    f"{release.command(release.repository)}"
                )
                break
        return message
    if unfinished and not (folder / TRANSFORMER).is_file():
        return None
    # Weights come in pairs: latents of one autoencoder mean nothing to another's transformer.
    present = [name for name in WEIGHTS if (folder / name).is_file()]
    if len(present) == 1:
        (missing,) = set(WEIGHTS) - set(present)
        return (
            f"checkpoint '{folder}' has {present[0]} but not {missing}; add it, or remove both to "
            f"run with random weights"
        )
    return None


def release_at(path: Path) -> Release | None:
    """Return the published checkpoint that a path or a repository's name stands for, if any."""
    if (path / CONFIG).is_file():
        return None
    for release in RELEASES:
        named = path.name == release.repository.split("/")[1]
        if named or any((path / name).is_file() for name in release.files):
            return release
    return None


def has_weights(folder: Path) -> bool:
    """Return whether the folder holds both weight files; without them a model is random."""
    return all((folder / name).is_file() for name in WEIGHTS)


def digest(path: str | Path, *, unfinished: bool = False) -> str:
    """Return the sha256 (hex) over the names and bytes of the folder's checkpoint files.

    Other files in the folder (a readme, say) do not count. Reads everything once: about a second
    per GB from a warm disk cache. ``unfinished`` is for :func:`describe_missing`.

    Raises:
        CheckpointError: a needed file is missing or cannot be read.
    """
    problem = describe_missing(path, unfinished=unfinished)
    if problem is not None:
        raise CheckpointError(problem)
    sha = hashlib.sha256()
    for name in (*REQUIRED, *WEIGHTS):
        file = Path(path) / name
        if file.is_file():
            try:
                add_to_digest(sha, file, name)
            except OSError as error:
                raise CheckpointError(f"{file}: cannot be read: {error}") from error
    return sha.hexdigest()


def add_to_digest(sha: hashlib._Hash, file: Path, name: str = "") -> None:
    """Add a file's bytes to a digest, behind its name and size if it has a name there."""
    if name:
        sha.update(f"{name} {file.stat().st_size}\n".encode())
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            sha.update(block)
