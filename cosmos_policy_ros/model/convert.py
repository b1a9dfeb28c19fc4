"""Published weights into a checkpoint folder: what ``cosmos convert`` does.

The parts are found in a folder or on Hugging Face; everything is checked before it is written, and
the folder appears whole or not at all.
"""

from __future__ import annotations

import dataclasses
import hashlib
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
from cosmos_policy_ros.core.config import did_you_mean
from cosmos_policy_ros.core.errors import CheckpointError, ConfigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.config import CheckpointConfig, read_config
from cosmos_policy_ros.model.statistics import describe_unused, load_statistics
from cosmos_policy_ros.model.text import check_embeddings, load_text, save_text
from cosmos_policy_ros.model.tokenizer import Tokenizer
from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.model.weight_names import (
    RELEASED_PREFIX,
    load_autoencoder,
    load_transformer,
    summarise,
)
from cosmos_policy_ros.model.weights import (
    SHARDS,
    is_distributed,
    load_prompts,
    read_shard_index,
    read_weights,
)

EMA_PREFIX = "net_ema."  # the moving average of the network's weights, in training checkpoints
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
    """The parts of one checkpoint; None where it was not found (or not given)."""

    weights: Path | None = None  # a file, the index of several, or a distributed folder
    vae: Path | None = None  # the video autoencoder's file
    statistics: Path | None = None  # the ranges' JSON
    prompts: Path | None = None  # the published pickle, or a ``text.safetensors``
    config: Path | None = None  # the ``config.yaml`` that describes it

    def missing(self) -> tuple[str, ...]:
        """Return the names of the parts that are None."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is None)


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
    found = given
    if given.weights is not None and given.weights.is_dir():
        found = dataclasses.replace(given, weights=_weights_in(given.weights) or given.weights)
    if folder.is_dir():
        found = _with_those_in(folder, found)
    elif folder.exists():
        raise CheckpointError(
            f"'{source}' is a file; give the folder it lies in, or an empty one with --weights"
        )
    elif REPOSITORY.fullmatch(source):
        if release is not None and release.files:
            found = _with_those_in(download(source, release.files), found)
        for repository in (source, release.companion if release is not None else ""):
            wanted = tuple(q for name in found.missing() for q in PATTERNS.get(name, ()))
            if repository and wanted:
                found = _with_those_in(download(repository, wanted), found)
        if found.vae is None:
            vae = download(files.VAE_REPOSITORY, (files.VAE_FILE,)) / files.VAE_FILE
            found = dataclasses.replace(found, vae=vae)
    else:
        raise CheckpointError(
            f"'{source}' is neither a folder nor a repository like {files.RELEASES[0].repository}"
        )
    if release is not None and found.config is None:
        found = dataclasses.replace(found, config=shipped_config(release.config))
    if found.missing():
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
        listed = "; ".join(f"--{name}: {help_of[name]}" for name in found.missing())
        raise CheckpointError(
            f"'{source}' lacks parts of a checkpoint. Put them there or name them: {listed}"
        )
    return found


def shipped_config(name: str) -> Path:
    """Return ``config/models/<name>/config.yaml``, or the path itself if it looks like one."""
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        path = config_folder("models") / name / files.CONFIG
    if not path.is_file():
        known = [p.parent.name for p in config_folder("models").glob(f"*/{files.CONFIG}")]
        raise ConfigError(f"there is no model config '{name}'{did_you_mean(name, known)}")
    return path


def hub_download(repository: str, patterns: Sequence[str]) -> Path:
    """Fetch files into Hugging Face's cache, where a second call finds them."""
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


def _with_those_in(folder: Path, found: Parts) -> Parts:
    """Add the parts that are missing, from where published folders and fine-tunings have them."""
    beside = [folder, folder.parent] if is_distributed(folder) else [folder]
    patterns = {
        "vae": (Path(files.VAE_FILE).name, files.VAE_FILE),
        "statistics": (STATISTICS_PATTERN,),
        "prompts": (PROMPTS_PATTERN, files.TEXT),
        "config": (files.CONFIG,),
    }
    new = {
        name: _only(name, [p for place in beside for q in patterns[name] for p in place.glob(q)])
        for name in found.missing()
        if name != "weights"
    }
    if found.weights is None:
        new["weights"] = _weights_in(folder)
    return dataclasses.replace(found, **new)


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


def convert(
    parts: Parts,
    target: Path,
    source: str,
    force: bool,
    report: Callable[[str], None],
    averaged: bool = False,
) -> str:
    """Write a checkpoint folder from all of its parts; returns its digest.

    Args:
        parts: none is missing.
        target: the folder to make.
        source: what ``provenance.json`` says the parts come from.
        force: replace an existing target.
        report: takes one line per step.
        averaged: take the moving average of the transformer's weights.

    Raises:
        CheckpointError: a part is unreadable or wrong, or the target is there already or cannot be
            written. The target is then as it was before.
    """
    if target.exists() and not force:
        raise CheckpointError(f"'{target}' is there already; give another name, or --force")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        digest = _write_parts(parts, partial, source, report, averaged)
        if not target.exists():
            partial.rename(target)
            return digest
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
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{target}' cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return digest


def _write_parts(
    parts: Parts, folder: Path, source: str, report: Callable[[str], None], averaged: bool
) -> str:
    """Write every file, the cheap checks first; returns the digest."""
    weights, vae, statistics, prompts = parts.weights, parts.vae, parts.statistics, parts.prompts
    assert weights and vae and statistics and prompts and parts.config
    report(f"[1/6] config {parts.config}")
    config = read_config(parts.config)
    shutil.copyfile(parts.config, folder / files.CONFIG)

    report(f"[2/6] statistics {statistics}")
    ranges = load_statistics(statistics, config.action_dims, config.proprio_dims)
    if unused := describe_unused(ranges):
        report(f"      {unused}")
    shutil.copyfile(statistics, folder / files.STATISTICS)

    report(f"[3/6] prompts {prompts}")
    tokens, width = config.text_tokens, config.transformer.text_width
    if prompts.suffix == ".safetensors":
        embeddings = load_text(prompts, tokens, width).embeddings
    else:
        embeddings = load_prompts(prompts)
        check_embeddings(embeddings, tokens, width, str(prompts))
    save_text(folder / files.TEXT, embeddings)

    report(f"[4/6] video autoencoder {vae}")
    with torch.device("meta"):
        tokenizer, transformer = Tokenizer(config.vae), Transformer(config.transformer)
    load_autoencoder(tokenizer, read_weights(vae), str(vae))
    _save(tokenizer.vae.state_dict(), config, folder / files.VAE)

    report(f"[5/6] transformer {weights}")
    tensors = read_weights(weights)
    # A training checkpoint holds more than the policy's network, which is below this prefix.
    prefix = EMA_PREFIX if averaged else RELEASED_PREFIX
    inside = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if averaged and not inside:
        raise CheckpointError(
            f"{weights}: holds no moving average, none of its tensors' names begins with "
            f"{EMA_PREFIX}; leave --ema out"
        )
    left_out = sorted(tensors.keys() - inside.keys()) if inside else []
    named = {name.removeprefix(prefix): tensor for name, tensor in inside.items()}
    load_transformer(transformer, named or tensors, str(weights))
    _save(transformer.state_dict(), config, folder / files.TRANSFORMER)
    if left_out:
        names = ", ".join(summarise(left_out))
        report(f"      left out {len(left_out)} tensors outside the network: {names}")
    if not averaged and any(name.startswith(EMA_PREFIX) for name in left_out):
        report("      --ema takes the weights' moving average instead")

    report("[6/6] checksums")
    digest = files.digest(folder)
    origins = {
        files.CONFIG: parts.config,
        files.STATISTICS: statistics,
        files.TEXT: prompts,
        files.VAE: vae,
        files.TRANSFORMER: weights,
    }
    history = {
        "source": source,
        "converter": f"cosmos_policy_ros {__version__}",
        "precision": config.precision,
        "files": {
            name: {"from": path.name, "sha256": sha256_of(path)} for name, path in origins.items()
        },
        "left_out": left_out,
        "averaged": averaged,
        "digest_when_converted": digest,
    }
    (folder / files.PROVENANCE).write_text(json.dumps(history, indent=2) + "\n", encoding="utf-8")
    return digest


def _save(tensors: dict[str, Tensor], config: CheckpointConfig, target: Path) -> None:
    precision = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    kept = {name: tensor.detach().to(precision).contiguous() for name, tensor in tensors.items()}
    for name, tensor in kept.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"tensor '{name}' holds numbers that are not finite")
    save_file(kept, target)
    # The library makes files that no other user of the robot may read.
    target.chmod((target.parent / files.CONFIG).stat().st_mode)


def sha256_of(path: Path) -> str:
    """Return the sha256 (hex) of a file, or over the names and bytes of several.

    Several are a folder's files, or an index of safetensors and what it lists.
    """
    sha = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            files.add_to_digest(sha, file, file.relative_to(path).as_posix())
    elif path.name.endswith(SHARDS):
        for name in (path.name, *sorted(set(read_shard_index(path).values()))):
            files.add_to_digest(sha, path.with_name(name), name)
    else:
        files.add_to_digest(sha, path)
    return sha.hexdigest()
