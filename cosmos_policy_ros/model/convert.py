"""Published weights into a checkpoint folder: what ``cosmos convert`` does.

Everything is checked before it is written, and the folder appears whole or not at all.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cosmos_policy_ros import __version__
from cosmos_policy_ros.core.config import did_you_mean, load_config
from cosmos_policy_ros.core.errors import CheckpointError, ConfigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.model import files, transformer_keys, vae_keys
from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.files import Release
from cosmos_policy_ros.model.statistics import describe_unused, load_statistics
from cosmos_policy_ros.model.strict import summarise
from cosmos_policy_ros.model.text import check_embeddings, load_text, save_text
from cosmos_policy_ros.model.tokenizer import Tokenizer
from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.model.weights import (
    EMA_PREFIX,
    SHARDS,
    is_distributed,
    load_prompts,
    read_weights,
    sha256_of,
    split_released,
)

# Where the parts of a published or fine-tuned checkpoint are: in a folder or on Hugging Face.


REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
STATISTICS_PATTERN = "*dataset_statistics.json"
PROMPTS_PATTERN = "*t5_embeddings.pkl"
# The first of these that a folder has.
WEIGHTS_NAMES = (
    "*.pt",
    f"*{SHARDS}",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
)
# What is asked of Hugging Face for a part; there, a star stands for folders, too.
PATTERNS = {
    "weights": ("*.pt", f"*{SHARDS}", "*model*.safetensors", "model/*.distcp", "model/.metadata"),
    "statistics": (STATISTICS_PATTERN,),
    "prompts": (PROMPTS_PATTERN, files.TEXT),
}

# Fetches the files of a repository that match the patterns; returns the folder they lie in.
Download = Callable[[str, Sequence[str]], Path]


@dataclass(frozen=True)
class Parts:
    """The parts of one checkpoint; None where it was not found (or not given).

    Attributes:
        weights: the transformer's file, the index of several, or the folder of a distributed
            checkpoint.
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
    if given.weights is not None and given.weights.is_dir():
        given = dataclasses.replace(given, weights=_weights_in(given.weights) or given.weights)
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
        for pattern in WEIGHTS_NAMES:
            if found := _only("weights", list(place.glob(pattern))):
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
    found = given
    if release is not None and release.files:
        found = found.filled(_in_folder(download(repository, release.files), found))
    if wanted := _patterns(found):
        found = found.filled(_in_folder(download(repository, wanted), found))
    if release is not None and release.companion and (wanted := _patterns(found)):
        found = found.filled(_in_folder(download(release.companion, wanted), found))
    if found.vae is None:
        folder = download(files.VAE_REPOSITORY, (files.VAE_FILE,))
        found = found.filled(Parts(vae=folder / files.VAE_FILE))
    return found


def _patterns(found: Parts) -> tuple[str, ...]:
    """Return what to ask of Hugging Face for the parts that are not found yet."""
    return tuple(q for name in found.missing() for q in PATTERNS.get(name, ()))


def _describe_missing(source: str, found: Parts) -> str:
    published = files.RELEASES[0]
    help_of = {
        "weights": f"a .pt file, a .safetensors file or an index of several (*{SHARDS}), or a "
        f"folder with a distributed checkpoint",
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


Report = Callable[[str], None]


def convert(
    parts: Parts, target: Path, source: str, force: bool, report: Report, averaged: bool = False
) -> str:
    """Write a checkpoint folder.

    Args:
        parts: what it is made of; all of them.
        target: the folder to make.
        source: how ``provenance.json`` calls where the parts come from.
        force: replace an existing target.
        report: is told one line per step.
        averaged: take the moving average of the transformer's weights.

    Returns:
        The folder's digest.

    Raises:
        CheckpointError: a part is unreadable or wrong, or the target is there already or cannot be
            written. The target is then as it was before.
    """
    if target.exists() and not force:
        raise CheckpointError(f"'{target}' is there already; give another name, or --force")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        digest = _fill(parts, partial, source, report, averaged)
        _publish(partial, target)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{target}' cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return digest


def _fill(parts: Parts, folder: Path, source: str, report: Report, averaged: bool) -> str:
    """Write every file, the cheap checks first; returns the digest."""
    weights, vae, statistics = parts.weights, parts.vae, parts.statistics
    prompts, described = parts.prompts, parts.config
    assert weights and vae and statistics and prompts and described
    report(f"[1/6] config {described}")
    config = _load_config(described)
    shutil.copyfile(described, folder / files.CONFIG)
    report(f"[2/6] statistics {statistics}")
    ranges = load_statistics(statistics, config.action_dims, config.proprio_dims)
    if unused := describe_unused(ranges):
        report(f"      {unused}")
    shutil.copyfile(statistics, folder / files.STATISTICS)
    report(f"[3/6] prompts {prompts}")
    _write_prompts(prompts, config, folder / files.TEXT)
    report(f"[4/6] video autoencoder {vae}")
    _write_vae(vae, config, folder / files.VAE)
    report(f"[5/6] transformer {weights}")
    ignored = _write_transformer(weights, config, folder / files.TRANSFORMER, averaged)
    if ignored:
        names = ", ".join(summarise(ignored))
        report(f"      left out {len(ignored)} tensors outside the network: {names}")
    if not averaged and any(name.startswith(EMA_PREFIX) for name in ignored):
        report("      --ema takes the weights' moving average instead")
    report("[6/6] checksums")
    digest = files.digest(folder)
    history = _history(parts, source, config, ignored)
    history |= {"averaged": averaged, "digest_when_converted": digest}
    (folder / files.PROVENANCE).write_text(json.dumps(history, indent=2) + "\n", encoding="utf-8")
    return digest


def _history(
    parts: Parts, source: str, config: CheckpointConfig, ignored: Sequence[str]
) -> dict[str, object]:
    origins = {
        files.CONFIG: parts.config,
        files.STATISTICS: parts.statistics,
        files.TEXT: parts.prompts,
        files.VAE: parts.vae,
        files.TRANSFORMER: parts.weights,
    }
    return {
        "source": source,
        "converter": f"cosmos_policy_ros {__version__}",
        "precision": config.precision,
        "files": {
            name: {"from": path.name, "sha256": sha256_of(path)}
            for name, path in origins.items()
            if path is not None
        },
        "left_out": list(ignored),
    }


def _load_config(path: Path) -> CheckpointConfig:
    try:
        return load_config(CheckpointConfig, path)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _write_prompts(path: Path, config: CheckpointConfig, target: Path) -> None:
    tokens, width = config.text_tokens, config.transformer.text_width
    if path.suffix == ".safetensors":
        embeddings = dict(load_text(path, tokens, width).embeddings)
    else:
        embeddings = load_prompts(path)
        check_embeddings(embeddings, tokens, width, str(path))
    save_text(target, embeddings)


def _write_vae(path: Path, config: CheckpointConfig, target: Path) -> None:
    with torch.device("meta"):
        network = Tokenizer(config.vae).vae
    vae_keys.load_weights(network, read_weights(path), config.vae.blocks, str(path))
    _save(network.state_dict(), config, target)


def _write_transformer(
    path: Path, config: CheckpointConfig, target: Path, averaged: bool
) -> tuple[str, ...]:
    """Return the names of what the file holds besides the network."""
    with torch.device("meta"):
        network = Transformer(config.transformer)
    tensors, ignored = split_released(read_weights(path), averaged)
    if not tensors and averaged:
        raise CheckpointError(
            f"{path}: holds no moving average, none of its tensors' names begins with "
            f"{EMA_PREFIX}; leave --ema out"
        )
    transformer_keys.load_weights(network, tensors, str(path))
    _save(network.state_dict(), config, target)
    return ignored


def _save(tensors: dict[str, Tensor], config: CheckpointConfig, target: Path) -> None:
    precision = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    kept = {name: tensor.detach().to(precision).contiguous() for name, tensor in tensors.items()}
    for name, tensor in kept.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"tensor '{name}' holds numbers that are not finite")
    save_file(kept, target)
    # The library makes files that nobody else on the robot may read.
    target.chmod((target.parent / files.CONFIG).stat().st_mode)


def _publish(partial: Path, target: Path) -> None:
    """Put the new folder in the old one's place; the old one returns if that fails."""
    if not target.exists():
        partial.rename(target)
        return
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        old.rename(target)
        raise
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink()
