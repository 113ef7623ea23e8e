"""`python -m ace export`: the same numbers in ONNX Runtime, timm and Transformers."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config
from torch import Tensor

import ace
from ace.__main__ import build_parser
from ace.inference.embedder import EmbeddingModel
from shards.cli import run_command
from tests.ace.inference.models import BACKBONES, CROP_PX, DIM, ROOT, write_model
from tests.support.datasets import smooth_image
from tests.support.forked import Forked

# The exporter follows bytecode and refuses the shape checks that the tests put around the networks, so it runs outside.
EXPORT = """
import sys
import types
import warnings
import torch
from ace.__main__ import build_parser
from shards.cli import run_command
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "Guards may run slower on Python 3.13.0")  # torch, there alone
folder, refused = sys.argv[1:]
sys.stdout = sys.stderr
export, programs = torch.onnx.export, []

def remembering(*arguments, **options):
    programs.append(export(*arguments, **options))
    return programs[0]

torch.onnx.export = remembering
code = run_command(build_parser(), ["export", "--format", "onnx", "--model", folder, "--out", folder + "-onnx"])
assert code == 0, folder
# The same network again, so the program is the one that is there.
torch.export.export = lambda *_, **__: types.SimpleNamespace(graph_module=torch.nn.Module())
torch.onnx.export = lambda *_, **__: programs[0]
arguments = ["export", "--format", "onnx", "--tolerance", "0", "--model", folder, "--out", refused]
assert run_command(build_parser(), arguments) == 2
"""


def export(*arguments: str | Path) -> int:
    return run_command(build_parser(), ["export", *map(str, arguments)])


@dataclass(frozen=True)
class Exported:
    """A model in the folder `kind` below `root`, what was exported of it in `kind-onnx`, and what the command said."""

    kind: str
    root: Path
    said: str


# Each takes the exporter four seconds.
@pytest.fixture(
    scope="module", params=["vit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("swin", "convnext"))]
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    kind, root = request.param, tmp_path_factory.mktemp("onnx")
    is_vit = kind == "vit"
    model = write_model(root / kind, kind, in_channels=1 if is_vit else 3, is_whitened=not is_vit)
    process = Forked(EXPORT, [str(model), str(root / "refused" / "onnx")], env=os.environ, cwd=ROOT)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert "of torch on random inputs" in said
    return Exported(kind, root, said)


@pytest.mark.slow
def test_onnx_runtime_computes_what_the_model_embeds(exported: Exported) -> None:
    """From the file alone: the preprocessing is the one that its metadata states."""
    runtime = pytest.importorskip("onnxruntime")
    kind, root = exported.kind, exported.root
    session = runtime.InferenceSession(root / f"{kind}-onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    model = ace.load(root / kind, device="cpu")
    images = [smooth_image(CROP_PX, CROP_PX, seed) for seed in range(5)]
    expected = model.embed(images)
    channels, mean, std = int(about["ace.channels"]), float(about["ace.mean"]), float(about["ace.std"])
    planes = np.stack([np.repeat(image[None], channels, axis=0) for image in images]).astype(np.float32)
    for number in (1, 5):
        inputs = {"image": (planes[:number] / 255 - np.float32(mean)) / np.float32(std)}
        embedding, tokens = session.run(["embedding", "tokens"], inputs)
        assert np.abs(embedding - expected.embedding[:number].numpy()).max() < 1e-4
        assert np.abs(tokens - expected.tokens[:number].numpy()).max() < 1e-4
    assert about["ace.crop_px"] == str(CROP_PX)
    assert about["ace.model_sha256"] == model.fingerprint
    assert 0 < float(about["ace.max_difference_to_torch"]) <= 1e-4
    assert about["ace.opset"] == "20"
    assert about["ace.whitening"] == ("false" if kind == "vit" else "true")
    assert session.get_inputs()[0].shape == ["batch", channels, CROP_PX, CROP_PX]
    assert sorted(path.name for path in (root / f"{kind}-onnx").iterdir()) == ["ace_model.json", "model.onnx"]


def test_the_file_names_no_path_of_this_machine(exported: Exported) -> None:
    (path,) = exported.root.rglob("model.onnx")
    assert str(ROOT).encode() not in path.read_bytes()


def test_a_difference_above_the_tolerance_leaves_nothing(exported: Exported) -> None:
    assert "error: ONNX Runtime differs from torch by" in exported.said
    assert "allowed are 0; nothing is written" in exported.said
    assert not list((exported.root / "refused").iterdir())


def test_a_missing_runtime_names_the_extra_to_install(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export("--format", "onnx", "--model", model_dir, "--out", tmp_path / "onnx") == 2
    assert "onnxruntime, which is not installed: pip install 'ace-pretraining[export]'" in capsys.readouterr().err


@pytest.mark.parametrize("format_", ["onnx", "timm"])
def test_a_folder_with_something_in_it_is_never_replaced(
    format_: str, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("dear")
    assert export("--format", format_, "--model", model_dir, "--out", tmp_path) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert export("--format", format_, "--model", model_dir, "--out", tmp_path / "mine/below") == 2
    assert "its folder cannot be made" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(("objective", "said"), [("ace", "WACV 2025"), ("ace_v2", "ACE-v2"), ("dino", "the baseline")])
def test_the_cards_say_by_which_objective_the_encoder_was_trained(objective: str, said: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "ace", objective=objective)
    assert export("--format", "timm", "--model", folder, "--out", tmp_path / "timm") == 0
    cards = [(tmp_path / name / "README.md").read_text() for name in ("ace", "timm")]
    assert all(said in card for card in cards)
    assert all(("WACV 2025" in card) == (objective == "ace") for card in cards)
    assert f"| objective | `{objective}` |" in cards[0]


def tokens_of(features: Tensor, kind: str, num_prefix_tokens: int) -> Tensor:
    """timm's layouts as [B, rows, cols, D], by hand."""
    match kind:
        case "vit":
            return features[:, num_prefix_tokens:].reshape(len(features), 4, 4, DIM)
        case "swin":
            return features
        case _:
            return features.permute(0, 2, 3, 1)


def finished(tokens: Tensor, root: Path) -> Tensor:
    """What the card says is to be done with the tokens of the exported model."""
    path = root / "folder/whitening.safetensors"
    return tokens.relu() @ load_file(path)["weight"] if path.exists() else tokens.relu()


@pytest.fixture(scope="module", params=BACKBONES)
def timm_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    root = tmp_path_factory.mktemp("timm")
    is_swin = request.param == "swin"
    write_model(root / "ace", request.param, in_channels=3 if is_swin else 1, is_whitened=is_swin)
    assert export("--format", "timm", "--model", root / "ace", "--out", root / "folder") == 0
    return request.param, root


@torch.inference_mode()
def test_timm_loads_the_folder_and_computes_the_same_tokens(timm_folder: tuple[str, Path]) -> None:
    kind, root = timm_folder
    network = timm.create_model(f"local-dir:{root / 'folder'}", pretrained=True, num_classes=0, global_pool="").eval()
    model = ace.load(root / "ace", device="cpu")
    image = smooth_image(CROP_PX, CROP_PX, 0)
    # timm's own preprocessing, from the folder's config.json.
    transform = create_transform(**resolve_data_config({}, model=network))
    picture = Image.fromarray(image).convert("L" if model.preprocessing.channels == 1 else "RGB")
    features = tokens_of(network(transform(picture)[None]), kind, getattr(network, "num_prefix_tokens", 0))
    expected = model.embed(image).tokens
    assert (features < 0).any(), "the activation is not part of the exported model"
    assert torch.allclose(finished(features, root)[0], expected, atol=1e-4)
    assert expected.std() > 0.1


@pytest.mark.parametrize("is_wide", [True, False], ids=["2:1", "1:2"])
def test_an_image_that_is_no_square_keeps_its_ends_in_timm_and_in_transformers(
    is_wide: bool, timm_folder: tuple[str, Path]
) -> None:
    """Stripes of another grey level at both ends, which a crop of the middle would cut off."""
    transformers = pytest.importorskip("transformers", reason="NOT TESTED: transformers is missing")
    _, root = timm_folder
    model = ace.load(root / "ace", device="cpu")
    picture = np.full((CROP_PX, 2 * CROP_PX), 200, dtype=np.uint8)
    picture[:, : CROP_PX // 4], picture[:, -CROP_PX // 4 :] = 40, 90
    image = Image.fromarray(picture if is_wide else picture.T.copy())
    image = image.convert("L" if model.preprocessing.channels == 1 else "RGB")
    network = timm.create_model(f"local-dir:{root / 'folder'}", pretrained=True, num_classes=0, global_pool="")
    processor = transformers.AutoImageProcessor.from_pretrained(root / "folder")
    mean, std = model.preprocessing.mean[0], model.preprocessing.std[0]
    for found in (
        create_transform(**resolve_data_config({}, model=network))(image),
        processor([image])["pixel_values"][0],
    ):
        levels = 255 * (found[0] * std + mean)
        levels = levels if is_wide else levels.T
        middle = levels[CROP_PX // 2]
        assert middle[[0, CROP_PX // 2, -1]].round().tolist() == [40, 200, 90]
        assert levels[[0, -1]].std() == 0, "above and below there is nothing but padding"


@torch.inference_mode()
def test_an_image_padded_as_the_card_says_gets_the_tokens_that_ace_gives_it(timm_folder: tuple[str, Path]) -> None:
    kind, root = timm_folder
    network = timm.create_model(f"local-dir:{root / 'folder'}", pretrained=True, num_classes=0, global_pool="").eval()
    model = ace.load(root / "ace", device="cpu")
    image = smooth_image(CROP_PX // 2, CROP_PX, 0)
    picture = Image.fromarray(image).convert("L" if model.preprocessing.channels == 1 else "RGB")
    assert (
        "image = ImageOps.pad(image, (SIDE, SIDE))".replace("SIDE", str(CROP_PX))
        in (root / "folder/README.md").read_text()
    )
    square = ImageOps.pad(picture, (CROP_PX, CROP_PX))
    transform = create_transform(**resolve_data_config({}, model=network))
    features = tokens_of(network(transform(square)[None]), kind, getattr(network, "num_prefix_tokens", 0))
    assert torch.allclose(finished(features, root)[0], model.embed(image).tokens, atol=1e-4)


@torch.inference_mode()
def test_transformers_loads_the_folder_and_computes_the_same_tokens(timm_folder: tuple[str, Path]) -> None:
    transformers = pytest.importorskip(
        "transformers",
        reason="NOT TESTED: transformers is missing, so no export was loaded with it (pip install .[dev])",
    )
    kind, root = timm_folder
    network = transformers.AutoModel.from_pretrained(root / "folder").eval()
    model: EmbeddingModel = ace.load(root / "ace", device="cpu")
    images = [smooth_image(CROP_PX, CROP_PX, seed) for seed in range(2)]
    planes = model.preprocessing.normalize([model.preprocessing.place(image) for image in images], torch.device("cpu"))
    processor = transformers.AutoImageProcessor.from_pretrained(root / "folder")
    mode = "L" if model.preprocessing.channels == 1 else "RGB"
    processed = processor([Image.fromarray(image).convert(mode) for image in images])["pixel_values"]
    assert torch.allclose(processed, planes, atol=1e-5)
    features = network(pixel_values=planes).pooler_output
    prefix = getattr(network.timm_model, "num_prefix_tokens", 0)
    assert torch.allclose(finished(tokens_of(features, kind, prefix), root), model.embed(images).tokens, atol=1e-4)


def test_the_folder_says_what_images_pass_first_and_what_it_may_be_used_for(timm_folder: tuple[str, Path]) -> None:
    kind, root = timm_folder
    expected = ["README.md", "ace_model.json", "config.json", "model.safetensors"]
    expected += ["whitening.safetensors"] if kind == "swin" else []
    assert sorted(path.name for path in (root / "folder").iterdir()) == expected
    config = json.loads((root / "folder/config.json").read_text())
    channels = config["pretrained_cfg"]["input_size"][0]
    assert config["pretrained_cfg"]["input_size"] == [channels, CROP_PX, CROP_PX]
    assert (config["pretrained_cfg"]["mean"], config["pretrained_cfg"]["std"]) == ([0.4] * channels, [0.2] * channels)
    card = (root / "folder/README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\nlicense: other\n")
    for said in ("Not a medical device", "US20250272962", "mean 0.4, std 0.2", "torch.relu", "| a-b000 | 7 | 5 |"):
        assert said in card
    assert ('load_file("whitening.safetensors")' in card) == (kind == "swin")
    assert ("| token whitening | none |" in card) == (kind != "swin")
