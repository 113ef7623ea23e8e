"""Checkpoints in the original naming, made by independent implementations, give the same features here."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import ace
from ace.__main__ import build_parser
from ace.embed.encoder import load_encoder
from ace.inference.timm_folder import export_timm
from ace.models.backbone import build_backbone
from ace.models.params import BackboneParams
from ace.published.importing import ARCHITECTURES, Architecture, import_checkpoint
from ace.published.naming import map_keys
from shards.core.errors import ConfigError
from shards.core.grid import GridSpec, Scale
from shards.format.layout import sha256_of
from tests.oracles.original_swin import OriginalSwin
from tests.oracles.original_vit import OriginalViT


def spec(t: int, cell_px: int) -> GridSpec:
    return GridSpec(n=2 * t, cell_px=cell_px, t=t, scales=(Scale(2, 2, 1.0),), min_overlap=0.5, min_jitter_area=0.85)


# Three stages, so that the middle one has a stage before and one after it; the last one's window fills its map.
SMALL_SWIN = Architecture(
    family="swin",
    name="swin_base_patch4_window7_224",
    spec=spec(4, 16),
    model_args={"embed_dim": 8, "depths": (2, 2, 1), "num_heads": (1, 2, 4), "window_size": 4},
)
SMALL_VIT = Architecture(
    family="vit",
    name="vit_base_patch16_224",
    spec=spec(4, 16),
    model_args={"embed_dim": 16, "depth": 2, "num_heads": 2},
)


def original(architecture: Architecture, channels: int) -> nn.Module:
    """The independent implementation, all its parameters drawn."""
    torch.manual_seed(0)
    side, args = architecture.spec.crop_px, architecture.model_args
    model: nn.Module
    if architecture.family == "swin":
        model = OriginalSwin(image_px=side, channels=channels, dim=8, depths=[2, 2, 1], heads=[1, 2, 4], window=4)
    else:
        model = OriginalViT(
            image_px=side,
            patch=architecture.spec.cell_px,
            channels=channels,
            dim=args["embed_dim"],
            depth=args["depth"],
            heads=args["num_heads"],
        )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def checkpoint(model: nn.Module, *, prefix: str = "backbone.", **more: Tensor) -> dict[str, Tensor]:
    heads = {"head.mlp.0.weight": torch.ones(2, 2), "head.last_layer.weight_g": torch.ones(2, 1)}
    return {**{f"{prefix}{key}": value for key, value in model.state_dict().items()}, **heads, **more}


def imported(content: Any, architecture: Architecture, folder: Path, **options: Any) -> Path:
    torch.save(content, folder / "published.pth")
    values: dict[str, Any] = {"network": "teacher", "mean": 0.5, "std": 0.25, **options}
    import_checkpoint(folder / "published.pth", folder / "model", architecture, **values)
    return folder / "model"


both = pytest.mark.parametrize("architecture", [SMALL_SWIN, SMALL_VIT], ids=["swin", "vit"])


@both
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("prefix", ["backbone.", "module.backbone."])
def test_the_imported_encoder_gives_the_features_of_the_original(
    architecture: Architecture, channels: int, prefix: str, tmp_path: Path
) -> None:
    model, images = original(architecture, channels), torch.randn(2, channels, 64, 64)
    content = {"teacher": checkpoint(model, prefix=prefix), "epoch": 7, "args": argparse.Namespace(lr=1)}
    encoder = load_encoder(imported(content, architecture, tmp_path))
    with torch.no_grad():
        expected, tokens = model(images), encoder.backbone(images.to(encoder.device)).cpu()
    assert encoder.in_channels == channels
    assert expected.std() > 0.1
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)


@both
def test_every_key_of_the_file_is_accounted_for(architecture: Architecture, tmp_path: Path) -> None:
    content = checkpoint(original(architecture, 1))
    folder = imported({"teacher": content}, architecture, tmp_path)
    source = json.loads((folder / "config.json").read_text())["source"]
    keys = map_keys(
        (key.removeprefix("backbone.") for key in content if key.startswith("backbone.")), architecture.family
    )
    assert len(keys.weights) + len(source["derived"]) + len(source["heads"]) == len(content)
    assert source["heads"] == ["head.mlp.0.weight", "head.last_layer.weight_g"]
    loaded = load_encoder(folder).backbone.state_dict()
    assert {f"model.{key}" for key in keys.weights.values()} == set(loaded)
    assert source["sha256"] == sha256_of(tmp_path / "published.pth")


def test_the_tables_of_a_swin_are_compared_and_left_out(tmp_path: Path) -> None:
    content = checkpoint(original(SMALL_SWIN, 1))
    derived = json.loads((imported({"teacher": content}, SMALL_SWIN, tmp_path) / "config.json").read_text())["source"]
    assert "layers.0.blocks.1.attn_mask" in derived["derived"]
    assert "layers.2.blocks.0.attn.relative_position_index" in derived["derived"]


def test_the_student_is_another_network_of_the_same_file(tmp_path: Path) -> None:
    teacher, student = checkpoint(original(SMALL_VIT, 1)), checkpoint(original(SMALL_VIT, 1))
    student["backbone.norm.bias"] = torch.full((16,), 9.0)
    folder = imported({"teacher": teacher, "student": student}, SMALL_VIT, tmp_path, network="student")
    assert (load_encoder(folder).backbone.state_dict()["model.norm.bias"] == 9).all()
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ConfigError, match=r"no tensors, only \['teacher'\]"):
        imported({"teacher": teacher}, SMALL_VIT, other, network="student")


def test_the_model_claims_no_training_of_its_own(tmp_path: Path) -> None:
    folder = imported({"teacher": checkpoint(original(SMALL_VIT, 1))}, SMALL_VIT, tmp_path)
    config, card = json.loads((folder / "config.json").read_text()), (folder / "README.md").read_text()
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "teacher_backbone.safetensors",
    ]
    assert config["origin"] == "imported"
    assert not {"steps", "shards"} & set(config)
    assert "This project did not train them" in card
    assert config["source"]["sha256"] in card
    encoder = load_encoder(folder)
    assert encoder.normalisation("any-b000") == ((0.5,), (0.25,))
    with pytest.raises(ConfigError, match="student_backbone"):
        load_encoder(folder, "student")


def test_an_imported_encoder_embeds_and_is_exported_as_what_it_is(tmp_path: Path) -> None:
    folder = imported({"teacher": checkpoint(original(SMALL_VIT, 1))}, SMALL_VIT, tmp_path)
    with pytest.raises(ConfigError, match="the model knows imported"):
        ace.load(folder, normalisation="any-b000")
    model = ace.load(folder, device="cpu")
    assert (model.preprocessing.normalisation, model.preprocessing.mean) == ("imported", (0.5,))
    export_timm(model, tmp_path / "timm")
    network = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True, num_classes=0, global_pool="").eval()
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        expected, tokens = model.encoder.backbone(images).flatten(1, 2), network(images)[:, 1:]
    torch.testing.assert_close(tokens, expected)
    card = (tmp_path / "timm/README.md").read_text()
    assert "Weights that others trained and published" in card
    assert sha256_of(tmp_path / "published.pth") in card
    assert "written from the paper" not in card


def changed_mask(content: dict[str, Tensor]) -> None:
    content["backbone.layers.0.blocks.1.attn_mask"] = torch.zeros(64, 16, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update({"backbone.absolute_pos_embed": torch.ones(1)}), "1 keys are none of a swin"),
        (lambda content: content.pop("backbone.norm.weight"), "norm.weight is missing"),
        (lambda content: content.update({"backbone.norm.bias": torch.ones(3)}), r"norm.bias has the shape \(3,\)"),
        (
            lambda content: content.update({"backbone.layers.1.blocks.2.norm1.bias": torch.ones(16)}),
            "layers.1.blocks.2.norm1.bias has no place",
        ),
        (
            lambda content: content.update({"backbone.norm.bias": torch.full((32,), torch.nan)}),
            "norm.bias holds NaN or infinite numbers",
        ),
        (changed_mask, "attn_mask is another table than the architecture's at this image size"),
        (lambda content: content.pop("backbone.patch_embed.proj.weight"), "patch_embed.proj.weight is missing"),
    ],
)
def test_a_checkpoint_that_is_not_the_architecture_is_refused_and_leaves_nothing(
    change: Any, message: str, tmp_path: Path
) -> None:
    content = checkpoint(original(SMALL_SWIN, 1))
    change(content)
    with pytest.raises(ConfigError, match=message):
        imported({"teacher": content}, SMALL_SWIN, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["published.pth"]


def test_a_model_folder_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match="exists; choose another --out"):
        imported({"teacher": checkpoint(original(SMALL_VIT, 1))}, SMALL_VIT, tmp_path)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_published_architecture_has_every_key_and_shape_of_the_original(name: str) -> None:
    architecture = ARCHITECTURES[name]
    side, cell_px = architecture.spec.crop_px, architecture.spec.cell_px
    backbone = {"name": architecture.name, "model_args": {}, "in_channels": 3, "drop_path": 0.0, "weights": None}
    params = BackboneParams.from_params({**backbone, "token_activation": "identity"}, "backbone")
    with torch.device("meta"):
        model: nn.Module
        if architecture.family == "swin":
            model = OriginalSwin(
                image_px=side, channels=3, dim=128, depths=[2, 2, 18, 2], heads=[4, 8, 16, 32], window=7
            )
        else:
            model = OriginalViT(image_px=side, patch=cell_px, channels=3, dim=768, depth=12, heads=12)
        ours = build_backbone(params, architecture.spec).model
    theirs = model.state_dict()
    keys = map_keys(theirs, architecture.family)
    assert {new: theirs[old].shape for old, new in keys.weights.items()} == {
        key: value.shape for key, value in ours.state_dict().items()
    }
    assert {key: theirs[key].shape for key in keys.derived} == {key: value.shape for key, value in ours.named_buffers()}


def test_the_command_names_every_architecture_of_the_authors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["import", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in ARCHITECTURES)
    arguments = build_parser().parse_args(["import", "file.pth", "--out", "model", "--architecture", "swin_b"])
    assert (arguments.network, arguments.mean, arguments.std) == ("teacher", None, None)
