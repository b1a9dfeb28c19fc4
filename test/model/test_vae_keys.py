"""Pins every name of the released autoencoder: a wrong one would load the right shape elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cosmos_policy_ros.core.config import load_config
from cosmos_policy_ros.core.errors import CheckpointError
from cosmos_policy_ros.model.config import CheckpointConfig, VaeConfig
from cosmos_policy_ros.model.tokenizer import Tokenizer
from cosmos_policy_ros.model.vae_keys import load_weights, our_names, released_name, released_names

MODELS = Path(__file__).parents[2] / "config" / "models"
SMALL = VaeConfig(4, (1, 2, 2, 2), 2, (False, True, True), 1, (0.0,) * 16, (1.0,) * 16)


@pytest.fixture(scope="module")
def wan() -> dict[str, torch.Tensor]:
    """Return the full-size network's state, shapes without numbers."""
    config = load_config(CheckpointConfig, MODELS / "aloha_2b" / "config.yaml")
    with torch.device("meta"):
        return dict(Tokenizer(config.vae).vae.state_dict())


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
def test_names(wan: dict[str, torch.Tensor], ours: str, released: str) -> None:
    assert ours in wan
    assert released_name(ours, 2) == released


def test_full_size_round_trip(wan: dict[str, torch.Tensor]) -> None:
    released = released_names(wan, 2)
    assert len(released) == 194
    heads = {name.split(".")[0] for name in released}
    assert heads == {"encoder", "decoder", "conv1", "conv2"}
    second = {name.split(".")[1] for name in released if name.startswith(("enc", "dec"))}
    assert second == {"conv1", "head", "middle", "downsamples", "upsamples"}
    back = our_names(released, wan, 2)
    assert back.keys() == wan.keys()
    assert all(back[name] is tensor for name, tensor in wan.items())


def test_released_file_is_loaded_and_computes_the_same() -> None:
    source, target = Tokenizer(SMALL).eval(), Tokenizer(SMALL).eval()
    video = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = source.encode(video)
        assert not torch.equal(target.encode(video), expected)
        load_weights(target.vae, released_names(source.vae.state_dict(), 2), 2, "x.pth")
        assert torch.equal(target.encode(video), expected)
        assert torch.equal(target.decode(expected), source.decode(expected))


def test_diffusers_names_are_taken_as_they_are() -> None:
    source, target = Tokenizer(SMALL), Tokenizer(SMALL)
    load_weights(target.vae, source.vae.state_dict(), 2, "x.safetensors")
    for name, tensor in source.vae.state_dict().items():
        assert torch.equal(target.vae.state_dict()[name], tensor)


def test_every_wrong_tensor_is_named() -> None:
    released = released_names(Tokenizer(SMALL).vae.state_dict(), 2)
    for block in (0, 1, 3):
        del released[f"encoder.downsamples.{block}.residual.2.weight"]
    released["decoder.extra"] = torch.zeros(1)
    released["conv1.bias"] = torch.zeros(2)
    with pytest.raises(CheckpointError) as caught:
        load_weights(Tokenizer(SMALL).vae, released, 2, "there/x.pth")
    message = str(caught.value)
    assert "there/x.pth" in message
    assert "missing: encoder.down_blocks.{0-1,3}.conv1.weight;" in message
    assert "unknown: decoder.extra;" in message
    assert "wrong shape: quant_conv.bias is (2,), expected (32,)" in message


def test_foreign_file_is_called_so_and_not_listed_whole() -> None:
    foreign = {f"layer.{i}": torch.zeros(1) for i in range(300)}
    with pytest.raises(CheckpointError, match=r"is something else.*and 297 more") as caught:
        load_weights(Tokenizer(SMALL).vae, foreign, 2, "x.pth")
    assert len(str(caught.value)) < 300
