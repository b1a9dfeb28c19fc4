"""Pins the names of the released tensors, and that a refused file names every wrong one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers.cosmos_oracle import REAL
from torch import Tensor

from cosmos_policy_ros.core.errors import CheckpointError
from cosmos_policy_ros.model.config import VaeConfig, read_config
from cosmos_policy_ros.model.straightforward import DiffusersTransformer, diffusers_names
from cosmos_policy_ros.model.tokenizer import Tokenizer
from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.model.weight_names import (
    load_autoencoder,
    load_transformer,
    released_name,
    summarise,
)

MODELS = Path(__file__).parents[2] / "config" / "models"
TWO = dataclasses.replace(REAL, layers=2, heads=1, head_dim=24, adaln_rank=4, text_width=8)
SMALL = VaeConfig(4, (1, 2, 2, 2), 2, (False, True, True), 1, (0.0,) * 16, (1.0,) * 16)
COUNTERS = ("video_sample_counter", "image_sample_counter", "iteration", "train_in_hours")


def released(network: Transformer) -> dict[str, Tensor]:
    """Return the network's tensors as a released file has them, bookkeeping included."""
    tensors = {f"net.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors["net.pos_embedder.seq"] = torch.arange(128, dtype=torch.float32)
    return tensors | {f"net.accum_{name}": torch.zeros(1) for name in COUNTERS}


def released_autoencoder(tokenizer: Tokenizer) -> dict[str, Tensor]:
    return {released_name(name, 2): tensor for name, tensor in tokenizer.vae.state_dict().items()}


@pytest.fixture
def network() -> Transformer:
    return Transformer(TWO)


def empty() -> Transformer:
    with torch.device("meta"):
        return Transformer(TWO)


def test_full_size_names_and_shapes() -> None:
    """Every tensor of the released transformer, written down from its documentation."""
    shapes = released_shapes()
    assert len(shapes) == 574 == 28 * 20 + 7 + 3 + 4
    with torch.device("meta"):
        network = Transformer(REAL)
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    load_transformer(network, tensors, "documented")
    assert sum(p.numel() for p in network.parameters()) == 1_956_413_440


def test_names_of_diffusers() -> None:
    with torch.device("meta"):
        theirs = DiffusersTransformer(dataclasses.replace(REAL, layers=2)).core.state_dict()
        ours = diffusers_names(Transformer(dataclasses.replace(REAL, layers=2)))
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}


def released_shapes() -> dict[str, tuple[int, ...]]:
    width, mlp, rank, text = 2048, 8192, 256, 1024
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj.1.weight": (width, 72),
        "pos_embedder.seq": (128,),
        "pos_embedder.dim_spatial_range": (21,),
        "pos_embedder.dim_temporal_range": (22,),
        "t_embedder.1.linear_1.weight": (width, width),
        "t_embedder.1.linear_2.weight": (3 * width, width),
        "t_embedding_norm.weight": (width,),
        "final_layer.linear.weight": (64, width),
        "final_layer.adaln_modulation.1.weight": (rank, width),
        "final_layer.adaln_modulation.2.weight": (2 * width, rank),
    }
    for name in ("video_sample_counter", "image_sample_counter", "iteration", "train_in_hours"):
        shapes[f"accum_{name}"] = ()
    for block in (f"blocks.{i}" for i in range(28)):
        for attention, source in (("self_attn", width), ("cross_attn", text)):
            shapes[f"{block}.{attention}.q_proj.weight"] = (width, width)
            shapes[f"{block}.{attention}.k_proj.weight"] = (width, source)
            shapes[f"{block}.{attention}.v_proj.weight"] = (width, source)
            shapes[f"{block}.{attention}.output_proj.weight"] = (width, width)
            shapes[f"{block}.{attention}.q_norm.weight"] = (128,)
            shapes[f"{block}.{attention}.k_norm.weight"] = (128,)
        shapes[f"{block}.mlp.layer1.weight"] = (mlp, width)
        shapes[f"{block}.mlp.layer2.weight"] = (width, mlp)
        for part in ("self_attn", "cross_attn", "mlp"):
            shapes[f"{block}.adaln_modulation_{part}.1.weight"] = (rank, width)
            shapes[f"{block}.adaln_modulation_{part}.2.weight"] = (3 * width, rank)
    return {f"net.{name}": shape for name, shape in shapes.items()}


@pytest.mark.parametrize("spelling", ["released", "ours", "diffusers"])
def test_every_spelling_loads(network: Transformer, spelling: str) -> None:
    extra = {"net.blocks.0.self_attn.q_norm._extra_state": torch.zeros(0)}
    tensors = {
        "released": released(network) | extra,
        "ours": network.state_dict(),
        "diffusers": diffusers_names(network),
    }[spelling]
    loaded = empty()
    load_transformer(loaded, tensors, "file")
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_position_buffers_of_the_file_win(network: Transformer) -> None:
    tensors = released(network)
    tensors["net.pos_embedder.dim_spatial_range"] = torch.arange(4) / 4 + 0.01
    for loaded in (empty(), Transformer(TWO)):
        load_transformer(loaded, tensors, "file")
        assert torch.equal(loaded.pos_embedder.dim_spatial_range, torch.arange(4) / 4 + 0.01)


def test_every_wrong_tensor_is_named(network: Transformer) -> None:
    tensors = released(network)
    for block in range(2):
        tensors.pop(f"net.blocks.{block}.mlp.layer1.weight")
    tensors.pop("net.blocks.1.cross_attn.k_norm.weight")
    tensors["net.t_embedding_norm.weight"] = torch.zeros(5)
    tensors["net.blocks.2.mlp.layer1.weight"] = torch.zeros(1)
    tensors["optimizer.state"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        load_transformer(empty(), tensors, "policy.pt")
    assert str(caught.value) == (
        "policy.pt does not fit the sizes in the checkpoint's config; "
        "missing: blocks.1.cross_attn.k_norm.weight, blocks.{0-1}.mlp.layer1.weight; "
        "unknown: blocks.2.mlp.layer1.weight, optimizer.state; "
        "wrong shape: t_embedding_norm.weight is (5,), expected (24,)"
    )


def test_a_refused_file_leaves_the_network_alone(network: Transformer) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    other = {name: tensor + 1 for name, tensor in before.items()}
    other.pop("final_layer.linear.weight")
    with pytest.raises(CheckpointError, match=r"missing: final_layer\.linear\.weight$"):
        load_transformer(network, other, "file")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.fixture(scope="module")
def wan() -> list[str]:
    """Return our names of the full-size autoencoder."""
    with torch.device("meta"):
        vae = Tokenizer(read_config(MODELS / "aloha_2b" / "config.yaml").vae).vae
    assert sum(p.numel() for p in vae.parameters()) == 126_892_531
    return list(vae.state_dict())


@pytest.mark.parametrize(
    ("ours", "released"),
    [
        ("quant_conv.weight", "conv1.weight"),
        ("post_quant_conv.bias", "conv2.bias"),
        ("encoder.conv_in.weight", "encoder.conv1.weight"),
        ("encoder.norm_out.gamma", "encoder.head.0.gamma"),
        ("decoder.conv_out.bias", "decoder.head.2.bias"),
        ("encoder.mid_block.resnets.0.norm1.gamma", "encoder.middle.0.residual.0.gamma"),
        ("decoder.mid_block.resnets.1.conv2.bias", "decoder.middle.2.residual.6.bias"),
        ("encoder.mid_block.attentions.0.norm.gamma", "encoder.middle.1.norm.gamma"),
        ("decoder.mid_block.attentions.0.to_qkv.weight", "decoder.middle.1.to_qkv.weight"),
        ("encoder.down_blocks.3.conv_shortcut.bias", "encoder.downsamples.3.shortcut.bias"),
        ("encoder.down_blocks.10.norm2.gamma", "encoder.downsamples.10.residual.3.gamma"),
        ("encoder.down_blocks.5.time_conv.weight", "encoder.downsamples.5.time_conv.weight"),
        ("encoder.down_blocks.2.resample.1.bias", "encoder.downsamples.2.resample.1.bias"),
        ("decoder.up_blocks.0.resnets.2.conv1.weight", "decoder.upsamples.2.residual.2.weight"),
        ("decoder.up_blocks.0.upsamplers.0.time_conv.bias", "decoder.upsamples.3.time_conv.bias"),
        ("decoder.up_blocks.1.resnets.0.conv_shortcut.bias", "decoder.upsamples.4.shortcut.bias"),
        (
            "decoder.up_blocks.2.upsamplers.0.resample.1.bias",
            "decoder.upsamples.11.resample.1.bias",
        ),
        ("decoder.up_blocks.3.resnets.2.conv2.bias", "decoder.upsamples.14.residual.6.bias"),
    ],
)
def test_names_of_the_autoencoder(wan: list[str], ours: str, released: str) -> None:
    assert ours in wan
    assert released_name(ours, 2) == released


def test_no_two_tensors_of_the_autoencoder_share_a_name(wan: list[str]) -> None:
    released = {released_name(name, 2) for name in wan}
    assert len(released) == len(wan) == 194
    heads = {name.split(".")[0] for name in released}
    assert heads == {"encoder", "decoder", "conv1", "conv2"}
    second = {name.split(".")[1] for name in released if name.startswith(("enc", "dec"))}
    assert second == {"conv1", "head", "middle", "downsamples", "upsamples"}


def test_a_released_autoencoder_is_loaded_and_computes_the_same() -> None:
    source, target = Tokenizer(SMALL).eval(), Tokenizer(SMALL).eval()
    video = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = source.encode(video)
        assert not torch.equal(target.encode(video), expected)
        load_autoencoder(target, released_autoencoder(source), "x.pth")
        assert torch.equal(target.encode(video), expected)
        assert torch.equal(target.decode(expected), source.decode(expected))


def test_an_autoencoder_of_diffusers_is_taken_as_it_is() -> None:
    source, target = Tokenizer(SMALL), Tokenizer(SMALL)
    load_autoencoder(target, source.vae.state_dict(), "x.safetensors")
    for name, tensor in source.vae.state_dict().items():
        assert torch.equal(target.vae.state_dict()[name], tensor)


def test_every_wrong_tensor_of_an_autoencoder_is_named() -> None:
    released = released_autoencoder(Tokenizer(SMALL))
    for block in (0, 1, 3):
        del released[f"encoder.downsamples.{block}.residual.2.weight"]
    released["decoder.extra"] = torch.zeros(1)
    released["conv1.bias"] = torch.zeros(2)
    with pytest.raises(CheckpointError) as caught:
        load_autoencoder(Tokenizer(SMALL), released, "there/x.pth")
    message = str(caught.value)
    assert "there/x.pth" in message
    assert "missing: encoder.down_blocks.{0-1,3}.conv1.weight;" in message
    assert "unknown: decoder.extra;" in message
    assert "wrong shape: quant_conv.bias is (2,), expected (32,)" in message


def test_foreign_file_is_called_so_and_not_listed_whole() -> None:
    """The position's buffers, which we would add to it, are no sign of kinship."""
    foreign = {f"layer.{i}": torch.zeros(1) for i in range(300)}
    with pytest.raises(CheckpointError, match=r"is something else.*and 297 more") as caught:
        load_transformer(empty(), foreign, "x.pt")
    assert len(str(caught.value)) < 300


def test_names_that_differ_in_their_block_are_folded() -> None:
    names = [f"blocks.{i}.{part}" for i in (0, 1, 2, 5, 7, 8) for part in ("a", "b")]
    assert summarise([*names, "z", "blocks.3.c"]) == [
        "blocks.3.c",
        "blocks.{0-2,5,7-8}.a",
        "blocks.{0-2,5,7-8}.b",
        "z",
    ]
