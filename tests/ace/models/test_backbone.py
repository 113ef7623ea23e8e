import pytest
import torch

from ace.models.backbone import build_backbone, check_backbone
from ace.models.params import BackboneParams
from shards.core.errors import ConfigError
from shards.core.grid import GridSpec, Scale


def params(name: str, in_channels: int = 3, **model_args: object) -> BackboneParams:
    values = {"name": name, "model_args": model_args, "in_channels": in_channels, "drop_path": 0.1}
    return BackboneParams.from_params({**values, "token_activation": "identity", "weights": None}, "backbone")


def grid(t: int, cell_px: int) -> GridSpec:
    return GridSpec(n=2 * t, cell_px=cell_px, t=t, scales=(Scale(2, 2, 1.0),), min_overlap=0.5, min_jitter_area=0.85)


@pytest.mark.parametrize(
    ("name", "in_channels", "t", "cell_px", "width"),
    [
        ("swin_base_patch4_window7_224", 1, 14, 32, 1024),
        pytest.param("swin_base_patch4_window7_224", 3, 14, 32, 1024, marks=pytest.mark.slow),
        pytest.param("vit_base_patch32_224", 1, 14, 32, 768, marks=pytest.mark.slow),
        ("vit_base_patch32_224", 3, 14, 32, 768),
        ("vit_base_patch16_224", 1, 14, 16, 768),
        ("swinv2_base_window8_256", 1, 16, 32, 1024),  # ACE-v2's 512 px
        # The 256 px that its window was made for.
        pytest.param("swinv2_base_window8_256", 3, 8, 32, 1024, marks=pytest.mark.slow),
        pytest.param("swinv2_base_window16_256", 1, 16, 32, 1024, marks=pytest.mark.slow),
        pytest.param("convnext_base", 1, 14, 32, 1024, marks=pytest.mark.slow),
        ("convnext_base", 3, 14, 32, 1024),
        ("resnet18", 3, 14, 32, 512),
    ],
)
def test_the_papers_and_other_backbones_yield_t_by_t_tokens(
    name: str, in_channels: int, t: int, cell_px: int, width: int
) -> None:
    spec = grid(t, cell_px)
    with torch.device("meta"):
        built = build_backbone(params(name, in_channels), spec)
        tokens = built(torch.empty(2, in_channels, spec.crop_px, spec.crop_px))
    assert built.width == width
    assert tokens.shape == (2, t, t, width)


VIT = {"embed_dim": 32, "depth": 1, "num_heads": 2}
SMALL = {
    "ViT with prefix tokens": (params("vit_tiny_patch16_224", 1, **VIT, reg_tokens=3), grid(8, 16)),
    "ViT without": (params("vit_tiny_patch16_224", 1, **VIT, class_token=False), grid(8, 16)),
    "Swin": (
        params("swin_tiny_patch4_window7_224", 1, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 2, 4]),
        grid(8, 16),
    ),
    "Swin in colour": (
        params("swin_tiny_patch4_window7_224", 3, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 2, 4]),
        grid(8, 16),
    ),
    "SwinV2 at twice the size of its window": (
        params("swinv2_tiny_window8_256", 1, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 2, 4], window_size=4),
        grid(8, 16),
    ),
    "ConvNeXt": (params("convnext_atto", 1, depths=[1, 1, 1, 1], dims=[8, 8, 16, 32]), grid(8, 32)),
}
small = pytest.mark.parametrize(("backbone", "spec"), SMALL.values(), ids=SMALL)


@small
def test_a_change_in_one_patch_changes_the_token_at_its_place_most(backbone: BackboneParams, spec: GridSpec) -> None:
    torch.manual_seed(0)
    model = build_backbone(backbone, spec).eval()
    image = torch.rand(1, backbone.in_channels, spec.crop_px, spec.crop_px)
    for row, col in [(0, 5), (5, 0), (2, 6), (7, 7)]:
        changed = image.clone()
        p = spec.cell_px
        changed[:, :, row * p : (row + 1) * p, col * p : (col + 1) * p] = torch.rand(p, p)
        with torch.no_grad():
            difference = (model(changed) - model(image)).norm(dim=-1)[0]
        assert divmod(int(difference.argmax()), 8) == (row, col)


@small
def test_tokens_come_after_the_last_norm(backbone: BackboneParams, spec: GridSpec) -> None:
    model = build_backbone(backbone, spec).eval()
    with torch.no_grad():
        tokens = model(torch.rand(1, backbone.in_channels, spec.crop_px, spec.crop_px))
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(1, 8, 8), atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens.var(-1, unbiased=False), torch.ones(1, 8, 8), atol=1e-2, rtol=0)


@small
def test_relu_keeps_what_is_positive_of_the_same_tokens(backbone: BackboneParams, spec: GridSpec) -> None:
    model = build_backbone(backbone, spec).eval()
    rectified = build_backbone(backbone.model_copy(update={"token_activation": "relu"}), spec).eval()
    rectified.load_state_dict(model.state_dict())
    image = torch.rand(1, backbone.in_channels, spec.crop_px, spec.crop_px)
    with torch.no_grad():
        tokens = model(image)
        assert torch.equal(rectified(image), tokens.clamp_min(0))
    assert (tokens < 0).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_the_map_of_tokens_is_computed_in_full_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    spec = grid(t=2, cell_px=8)
    backbone = build_backbone(
        params("vit_tiny_patch16_224", 1, patch_size=8, embed_dim=32, depth=1, num_heads=2), spec
    ).eval()
    images, weight = torch.randn(3, 1, 16, 16), torch.eye(32) + 0.2 * torch.randn(32, 32)
    with torch.autocast("cpu", dtype):
        plain = backbone(images)
        backbone.whiten(weight)
        found = backbone(images)
    assert torch.allclose(found, plain @ weight.T, atol=1e-5)
    assert [name for name, value in backbone.named_parameters() if not value.requires_grad] == ["whitening.weight"]
    backbone.to(dtype)
    assert backbone(images.to(dtype)).dtype == torch.float32


@small
def test_every_parameter_of_a_backbone_gets_a_gradient(backbone: BackboneParams, spec: GridSpec) -> None:
    model = build_backbone(backbone, spec)
    model(torch.rand(2, backbone.in_channels, spec.crop_px, spec.crop_px)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_grid_that_does_not_fit_names_both_grids_and_the_size_of_a_token() -> None:
    with pytest.raises(ConfigError) as error:
        check_backbone(params("vit_base_patch32_224"), grid(14, 16))
    assert str(error.value) == (
        "backbone vit_base_patch32_224 on 224-px crops (t·cell_px = 14·16): the token grid is 7×7, "
        "expected t×t = 14×14; its tokens are 32 px apart: set cell_px to that or choose another model"
    )


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (params("vit_tiny_patch16_24"), "no such model; did you mean one of .*vit_tiny_patch16_224"),
        (params("vit_tiny_patch16_224", depht=6), "timm refuses: .*depht"),
        (params("convnext_atto", dims=[8]), "timm refuses: .*index"),
        (params("vit_tiny_patch16_224", img_size=64, num_classes=2), r"model_args sets \['img_size', 'num_classes'\]"),
        (params("vit_base_patch14_dinov2"), "grid is 9×9, expected t×t = 8×8; its tokens are 14 px apart"),
    ],
)
def test_a_mistake_in_the_parameters_is_one_clear_message(backbone: BackboneParams, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_backbone(backbone, grid(8, 16))
