"""Pins the names of the 574 released tensors, and that a refused file names every wrong one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers.cosmos_oracle import REAL, Oracle
from torch import Tensor

from cosmos_policy_ros.core.errors import CheckpointError
from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.model.transformer_keys import (
    diffusers_names,
    load_weights,
    our_names,
)

TWO = dataclasses.replace(REAL, layers=2, heads=1, head_dim=24, adaln_rank=4, text_width=8)
COUNTERS = ("video_sample_counter", "image_sample_counter", "iteration", "train_in_hours")


def released(network: Transformer) -> dict[str, Tensor]:
    """Return the network's tensors as a released file has them, bookkeeping included."""
    tensors = {f"net.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors["net.pos_embedder.seq"] = torch.arange(128, dtype=torch.float32)
    return tensors | {f"net.accum_{name}": torch.zeros(1) for name in COUNTERS}


@pytest.fixture
def network() -> Transformer:
    return Transformer(TWO)


@pytest.fixture(scope="module")
def full_size() -> Transformer:
    """On the meta device: shapes without the 4 GB."""
    with torch.device("meta"):
        return Transformer(REAL)


def empty() -> Transformer:
    with torch.device("meta"):
        return Transformer(TWO)


def test_released_network_has_574_tensors(full_size: Transformer) -> None:
    """20 in each of 28 blocks, 7 around them, 3 position buffers and 4 counters."""
    tensors = released(full_size)
    assert len(tensors) == 574 == 28 * 20 + 7 + 3 + 4
    assert sum(p.numel() for p in full_size.parameters()) == 1_956_413_440
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, shape in {
        "net.x_embedder.proj.1.weight": (2048, 72),
        "net.pos_embedder.seq": (128,),
        "net.pos_embedder.dim_spatial_range": (21,),
        "net.pos_embedder.dim_temporal_range": (22,),
        "net.t_embedder.1.linear_1.weight": (2048, 2048),
        "net.t_embedder.1.linear_2.weight": (6144, 2048),
        "net.t_embedding_norm.weight": (2048,),
        "net.blocks.0.self_attn.q_proj.weight": (2048, 2048),
        "net.blocks.27.self_attn.output_proj.weight": (2048, 2048),
        "net.blocks.27.cross_attn.k_proj.weight": (2048, 1024),
        "net.blocks.27.cross_attn.v_proj.weight": (2048, 1024),
        "net.blocks.1.cross_attn.q_norm.weight": (128,),
        "net.blocks.1.self_attn.k_norm.weight": (128,),
        "net.blocks.9.mlp.layer1.weight": (8192, 2048),
        "net.blocks.9.mlp.layer2.weight": (2048, 8192),
        "net.blocks.9.adaln_modulation_self_attn.1.weight": (256, 2048),
        "net.blocks.9.adaln_modulation_cross_attn.2.weight": (6144, 256),
        "net.blocks.9.adaln_modulation_mlp.2.weight": (6144, 256),
        "net.final_layer.linear.weight": (64, 2048),
        "net.final_layer.adaln_modulation.1.weight": (256, 2048),
        "net.final_layer.adaln_modulation.2.weight": (4096, 256),
    }.items():
        assert shapes[name] == shape, name


def test_full_size_names_go_to_diffusers_and_back(full_size: Transformer) -> None:
    ours = full_size.state_dict()
    theirs = diffusers_names(ours)
    with torch.device("meta"):
        oracle = Oracle(REAL).core
    expected = {name: tensor.shape for name, tensor in oracle.state_dict().items()}
    assert {name: tensor.shape for name, tensor in theirs.items()} == expected
    back = our_names(theirs)
    assert set(back) == {name for name in ours if not name.startswith("pos_embedder.")}
    assert all(back[name] is ours[name] for name in back)


@pytest.mark.parametrize("spelling", ["released", "ours", "diffusers"])
def test_every_spelling_loads(network: Transformer, spelling: str) -> None:
    extra = {"net.blocks.0.self_attn.q_norm._extra_state": torch.zeros(0)}
    tensors = {
        "released": released(network) | extra,
        "ours": network.state_dict(),
        "diffusers": diffusers_names(network.state_dict()),
    }[spelling]
    loaded = empty()
    load_weights(loaded, tensors, "file")
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_position_buffers_of_the_file_win(network: Transformer) -> None:
    tensors = released(network)
    tensors["net.pos_embedder.dim_spatial_range"] = torch.arange(4) / 4 + 0.01
    for loaded in (empty(), Transformer(TWO)):
        load_weights(loaded, tensors, "file")
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
        load_weights(empty(), tensors, "policy.pt")
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
        load_weights(network, other, "file")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_foreign_file_is_called_so_and_not_listed_whole() -> None:
    """The position's buffers, which we would add to it, are no sign of kinship."""
    foreign = {f"layer.{i}": torch.zeros(1) for i in range(300)}
    with pytest.raises(CheckpointError, match=r"is something else.*and 297 more") as caught:
        load_weights(empty(), foreign, "x.pt")
    assert len(str(caught.value)) < 300
