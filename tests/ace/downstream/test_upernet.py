from pathlib import Path

import pytest
import torch
from torch import nn

import ace.zoo
from ace.downstream.upernet import FINEST_STRIDE, FeaturePyramid, UPerNet
from ace.embed.encoder import load_encoder
from ace.models.backbone import Backbone, build_backbone
from ace.models.params import BackboneParams
from shards.core.grid import GridSpec, Scale

CXR_SMALL = Path(ace.zoo.__file__).parent / "cxr-small"


def params(name: str, **model_args: object) -> BackboneParams:
    values = {"name": name, "model_args": model_args, "in_channels": 1, "drop_path": 0.0}
    return BackboneParams.from_params({**values, "token_activation": "relu", "weights": None}, "backbone")


def grid(t: int, cell_px: int) -> GridSpec:
    return GridSpec(n=2 * t, cell_px=cell_px, t=t, scales=(Scale(2, 2, 1.0),), min_overlap=0.5, min_jitter_area=0.85)


SWIN = params("swin_tiny_patch4_window7_224", embed_dim=8, depths=[1, 1, 1], num_heads=[1, 2, 4])
BACKBONES = {
    "ConvNeXt of two stages": (
        params("convnext_atto", patch_size=8, depths=[1, 1, 0, 0], dims=[16, 32, 32, 32], output_stride=16),
        grid(4, 16),
        [(16, 16), (8, 16), (4, 32)],
    ),
    "ConvNeXt": (
        params("convnext_atto", depths=[1, 1, 1, 1], dims=[8, 8, 16, 32]),
        grid(4, 32),
        [(32, 8), (16, 8), (8, 16), (4, 32)],
    ),
    "Swin": (SWIN, grid(8, 16), [(32, 8), (16, 16), (8, 32)]),
    "ViT": (
        params("vit_tiny_patch16_224", embed_dim=64, depth=2, num_heads=2, reg_tokens=1),
        grid(4, 16),
        [(16, 16), (8, 32), (4, 64)],
    ),
    "EfficientNet": (
        params("tf_efficientnet_lite0", output_stride=16),
        grid(4, 16),
        [(16, 24), (8, 40), (4, 1280)],
    ),
}
every_backbone = pytest.mark.parametrize(("backbone", "spec", "maps"), BACKBONES.values(), ids=BACKBONES)
without_batch_norm = pytest.mark.parametrize(
    ("backbone", "spec", "maps"), list(BACKBONES.values())[:-1], ids=list(BACKBONES)[:-1]
)


def built(backbone: BackboneParams, spec: GridSpec) -> tuple[Backbone, torch.Tensor]:
    torch.manual_seed(0)
    return build_backbone(backbone, spec), torch.rand(2, 1, spec.crop_px, spec.crop_px)


@every_backbone
def test_maps_halve_from_stride_4_to_the_tokens_which_are_the_backbones(
    backbone: BackboneParams, spec: GridSpec, maps: list[tuple[int, int]]
) -> None:
    encoder, images = built(backbone, spec)
    pyramid = FeaturePyramid(encoder.eval()).eval()
    with torch.no_grad():
        found = pyramid(images)
        tokens = encoder(images)
    assert [(values.shape[2], values.shape[1]) for values in found] == maps
    assert pyramid.channels == tuple(channels for _, channels in maps)
    assert all(values.shape[2] == values.shape[3] for values in found)
    torch.testing.assert_close(found[-1].permute(0, 2, 3, 1), tokens)


@every_backbone
def test_logits_are_of_the_finest_map_and_every_parameter_gets_a_gradient(
    backbone: BackboneParams, spec: GridSpec, maps: list[tuple[int, int]]
) -> None:
    encoder, images = built(backbone, spec)
    network = UPerNet(encoder, num_outputs=3, decoder_channels=16)
    logits = network(images)
    assert logits.shape == (2, 3, spec.crop_px // FINEST_STRIDE, spec.crop_px // FINEST_STRIDE)
    logits.square().sum().backward()
    assert [name for name, value in network.named_parameters() if value.grad is None] == []


@without_batch_norm
def test_an_image_has_the_same_logits_alone_and_among_others_in_training_too(
    backbone: BackboneParams, spec: GridSpec, maps: list[tuple[int, int]]
) -> None:
    encoder, images = built(backbone, spec)
    network = UPerNet(encoder, num_outputs=2, decoder_channels=32).train()
    assert not [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    with torch.no_grad():
        torch.testing.assert_close(network(images)[:1], network(images[:1]), atol=1e-4, rtol=1e-4)


@without_batch_norm
def test_a_change_in_a_corner_changes_every_map_most_in_that_corner(
    backbone: BackboneParams, spec: GridSpec, maps: list[tuple[int, int]]
) -> None:
    encoder, images = built(backbone, spec)
    pyramid = FeaturePyramid(encoder).eval()
    changed = images.clone()
    changed[..., : spec.cell_px, -spec.cell_px :] = torch.rand(spec.cell_px, spec.cell_px)
    with torch.no_grad():
        differences = [(new - old).norm(dim=1) for new, old in zip(pyramid(changed), pyramid(images), strict=True)]
    for difference in differences:
        half = difference.shape[-1] // 2
        corners = difference[0].unfold(0, half, half).unfold(1, half, half).mean((2, 3))
        assert divmod(int(corners.argmax()), 2) == (0, 1)


def test_the_shipped_encoder_gets_a_decoder_and_keeps_its_weights() -> None:
    encoder = load_encoder(CXR_SMALL, device="cpu")
    before = {name: value.clone() for name, value in encoder.backbone.state_dict().items()}
    network = UPerNet(encoder.backbone, num_outputs=2, decoder_channels=16)
    with torch.no_grad():
        logits = network(torch.rand(1, 1, encoder.input_px, encoder.input_px))
    assert logits.shape == (1, 2, 32, 32)
    after = network.pyramid.backbone.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [values.shape[2] for values in network.pyramid(torch.rand(1, 1, 128, 128))] == [32, 16, 8]
