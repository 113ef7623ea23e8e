"""Initial weights: what is loaded is what the file says, adapted to the backbone, and every key is accounted for."""

import argparse
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv
from torch import Tensor, nn

from ace.embed.encoder import load_encoder
from ace.models.backbone import Backbone, build_backbone
from ace.models.folder import FORMAT_VERSION
from ace.models.model_config import TrainedConfig
from ace.models.params import BackboneParams
from ace.models.weights import WeightsReport, check_weights, load_initial_weights, tensors_sha256
from ace.pretrain.model_folder import save_model
from ace.pretrain.pretrain import build_state
from ace.pretrain.start import take_first_weights
from shards.core.errors import ConfigError
from shards.core.grid import GridSpec, Scale
from shards.format.layout import sha256_of
from tests.ace.pretrain.conftest import tiny_grid, tiny_mix, tiny_params
from tests.oracles.original_swin import OriginalSwin

VIT = {"name": "vit_tiny_patch16_224", "model_args": {"embed_dim": 32, "depth": 1, "num_heads": 2}}
SWIN = {
    "name": "swin_tiny_patch4_window7_224",
    "model_args": {"embed_dim": 8, "depths": [2, 1, 1], "num_heads": [1, 2, 4], "window_size": 4},
}
SWIN_V2 = {
    "name": "swinv2_tiny_window8_256",
    "model_args": {"embed_dim": 8, "depths": [2, 1, 1], "num_heads": [1, 2, 4], "window_size": 4},
}
CONVNEXT = {
    "name": "convnext_atto",
    "model_args": {"depths": [1, 1, 1, 0], "dims": [8, 8, 16, 16], "output_stride": 16, "ls_init_value": 1.0},
}
FAMILIES = {"vit": VIT, "swin": SWIN, "swinv2": SWIN_V2, "convnext": CONVNEXT}
each_family = pytest.mark.parametrize("family", FAMILIES)


def spec(t: int) -> GridSpec:
    return GridSpec(n=2 * t, cell_px=16, t=t, scales=(Scale(2, 2, 1.0),), min_overlap=0.5, min_jitter_area=0.85)


def params(family: dict[str, Any], weights: dict[str, Any] | None = None, in_channels: int = 1) -> BackboneParams:
    rest = {"in_channels": in_channels, "token_activation": "identity", "drop_path": 0.0, "weights": weights}
    return BackboneParams.from_params({**family, **rest}, "backbone")


def drawn(family: dict[str, Any], *, t: int = 4, in_channels: int = 1, seed: int = 0) -> Backbone:
    """A backbone of which no two numbers are alike."""
    torch.manual_seed(seed)
    backbone = build_backbone(params(family, in_channels=in_channels), spec(t))
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.3)
    return backbone.eval()


def of_file(path: Path, min_share: float = 0.9, sha256: str | None = None) -> dict[str, Any]:
    return {"kind": "file", "path": str(path), "sha256": sha256 or sha256_of(path), "min_share": min_share}


def load(
    family: dict[str, Any], path: Path, *, t: int = 4, in_channels: int = 1, min_share: float = 0.9
) -> tuple[Backbone, WeightsReport]:
    values = params(family, of_file(path, min_share), in_channels)
    backbone = build_backbone(values, spec(t)).eval()
    report = load_initial_weights(backbone, values)
    assert report is not None
    return backbone, report


def assert_complete(report: WeightsReport, file_keys: list[str], backbone: Backbone) -> None:
    """Every key of the file and of the backbone stands in the report exactly once."""
    of_file_ = [entry.origin for entry in (*report.used, *report.misfits)] + list(report.unused)
    of_model = [entry.key for entry in report.used] + list(report.missing)
    assert Counter(of_file_) == Counter(file_keys)
    assert Counter(of_model) == Counter(list(backbone.model.state_dict()))
    assert {entry.key for entry in report.misfits} <= set(report.missing)
    text = str(report)
    assert all(key in text for key in (*file_keys, *report.missing))


@each_family
def test_weights_of_the_same_backbone_are_taken_as_they_are(family: str, tmp_path: Path) -> None:
    source = drawn(FAMILIES[family])
    save_file(source.model.state_dict(), tmp_path / "w.safetensors")
    backbone, report = load(FAMILIES[family], tmp_path / "w.safetensors")
    assert backbone.state_dict().keys() == source.state_dict().keys()
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in backbone.state_dict().items())
    assert (report.share, report.adapted, report.misfits, report.unused, report.missing) == (1.0, (), (), (), ())
    assert_complete(report, list(source.model.state_dict()), backbone)


def nested(kind: str, state: dict[str, Tensor]) -> Any:
    """The tensors as training scripts save them, heads beside."""
    heads = {"head.mlp.0.weight": torch.ones(2, 2)}
    match kind:
        case "bare":
            return {**state, **heads}
        case "state_dict":
            return {"epoch": 3, "args": argparse.Namespace(lr=0.1), "state_dict": {**state, **heads}}
        case "teacher with backbone":
            other = {key: torch.zeros_like(value) for key, value in state.items()}
            enclosed = {f"backbone.{key}": value for key, value in state.items()}
            return {"student": other, "teacher": {**enclosed, **heads}}
        case "distributed and compiled":
            return {"model": {f"module._orig_mod.{key}": value for key, value in {**state, **heads}.items()}}
        case _:
            return {"teacher": {"state_dict": {f"module.backbone.model.{k}": v for k, v in state.items()}, **heads}}


@pytest.mark.parametrize(
    "kind", ["bare", "state_dict", "teacher with backbone", "distributed and compiled", "twice nested"]
)
def test_nests_and_prefixes_do_not_matter_and_heads_are_listed(kind: str, tmp_path: Path) -> None:
    source = drawn(VIT)
    torch.save(nested(kind, source.model.state_dict()), tmp_path / "w.pth")
    backbone, report = load(VIT, tmp_path / "w.pth")
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in backbone.state_dict().items())
    assert report.unused == (() if kind == "twice nested" else ("head.mlp.0.weight",))


@each_family
@pytest.mark.parametrize(("of_weights", "of_model"), [(3, 1), (1, 3)])
def test_other_channels_give_the_features_of_a_repeated_grey_image(
    family: str, of_weights: int, of_model: int, tmp_path: Path
) -> None:
    source = drawn(FAMILIES[family], in_channels=of_weights)
    save_file(source.model.state_dict(), tmp_path / "w.safetensors")
    backbone, report = load(FAMILIES[family], tmp_path / "w.safetensors", in_channels=of_model)
    grey = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        expected, found = source(grey.expand(-1, of_weights, -1, -1)), backbone(grey.expand(-1, of_model, -1, -1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    (adapted,) = report.adapted
    assert (adapted.found[1], adapted.needed[1]) == (of_weights, of_model)
    assert report.missing == ()


def test_three_channels_become_one_as_timm_does_it(tmp_path: Path) -> None:
    source = drawn(VIT, in_channels=3)
    save_file(source.model.state_dict(), tmp_path / "w.safetensors")
    kernel = load(VIT, tmp_path / "w.safetensors")[0].model.patch_embed.proj.weight
    torch.testing.assert_close(kernel.detach(), adapt_input_conv(1, source.model.patch_embed.proj.weight.detach()))


def test_position_embeddings_are_resampled_to_the_grid_and_prefix_tokens_kept(tmp_path: Path) -> None:
    source = drawn(VIT, t=4)
    save_file(source.model.state_dict(), tmp_path / "w.safetensors")
    backbone, report = load(VIT, tmp_path / "w.safetensors", t=6)
    (adapted,) = report.adapted
    assert (adapted.key, adapted.found, adapted.needed) == ("pos_embed", (1, 17, 32), (1, 37, 32))
    embedding = source.model.pos_embed.detach()
    assert torch.equal(backbone.model.pos_embed[:, 0], embedding[:, 0])
    torch.testing.assert_close(
        backbone.model.pos_embed.detach(), resample_abs_pos_embed(embedding, (6, 6), num_prefix_tokens=1)
    )
    assert "pos_embed: (1, 17, 32) → (1, 37, 32)" in str(report)


@pytest.mark.parametrize("family", ["swin", "swinv2", "convnext"])
def test_windows_and_convolutions_take_another_image_size_unchanged(family: str, tmp_path: Path) -> None:
    source = drawn(FAMILIES[family], t=4)
    save_file(source.model.state_dict(), tmp_path / "w.safetensors")
    backbone, report = load(FAMILIES[family], tmp_path / "w.safetensors", t=8)
    assert (report.adapted, report.missing, report.share) == ((), (), 1.0)
    fresh = drawn(FAMILIES[family], t=8, seed=1)
    fresh.model.load_state_dict(source.model.state_dict())
    image = torch.randn(1, 1, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(backbone(image), fresh(image), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*searchsorted", "ignore:Using a non-tuple sequence")  # timm's resampling
def test_relative_position_tables_are_resampled_to_another_window(tmp_path: Path) -> None:
    source = drawn(SWIN, t=4)
    save_file(source.model.state_dict(), tmp_path / "w.safetensors")
    wider = {**SWIN, "model_args": {**SWIN["model_args"], "window_size": 8}}
    backbone, report = load(wider, tmp_path / "w.safetensors", t=8)
    assert {entry.key.rpartition(".")[2] for entry in report.adapted} == {"relative_position_bias_table"}
    assert {(entry.found[0], entry.needed[0]) for entry in report.adapted} == {(7 * 7, 15 * 15)}
    old, new = (model.model.layers[0].blocks[0].attn.relative_position_bias_table for model in (source, backbone))
    torch.testing.assert_close(new[7 * 15 + 7], old[3 * 7 + 3])  # distance 0 is the same table entry in both
    assert_complete(report, list(source.model.state_dict()), backbone)


def test_the_original_naming_of_swin_is_taken_stage_by_stage(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = OriginalSwin(image_px=64, channels=1, dim=8, depths=[2, 1, 1], heads=[1, 2, 4], window=4).eval()
    for parameter in original.parameters():
        nn.init.normal_(parameter, std=0.3)
    torch.save({"model": original.state_dict()}, tmp_path / "w.pth")
    backbone, report = load(SWIN, tmp_path / "w.pth")
    image = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(image), original(image), rtol=1e-4, atol=1e-4)
    renamed = {entry.origin: entry.key for entry in report.used if entry.origin != entry.key}
    assert renamed["layers.0.downsample.reduction.weight"] == "layers.1.downsample.reduction.weight"
    assert {key.rpartition(".")[2] for key in report.unused} == {"relative_position_index", "attn_mask"}
    assert_complete(report, list(original.state_dict()), backbone)


def test_what_does_not_fit_is_reported_and_stays_random(tmp_path: Path) -> None:
    state = drawn(VIT).model.state_dict()
    state["norm.bias"] = torch.ones(5)
    state["blocks.9.norm1.weight"] = torch.ones(32)
    del state["norm.weight"]
    save_file(state, tmp_path / "w.safetensors")
    backbone, report = load(VIT, tmp_path / "w.safetensors")
    assert report.missing == ("norm.weight", "norm.bias")
    assert [(entry.key, entry.found, entry.needed) for entry in report.misfits] == [("norm.bias", (5,), (32,))]
    assert report.unused == ("blocks.9.norm1.weight",)
    assert report.num_parameters - report.num_loaded == 64
    assert torch.equal(backbone.model.norm.bias, torch.zeros(32))
    assert_complete(report, list(state), backbone)
    assert "NOT loaded, of another shape: 1" in str(report)


def test_weights_of_another_architecture_are_refused_with_the_report(tmp_path: Path) -> None:
    save_file(drawn(CONVNEXT).model.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(
        ConfigError, match=r"gives 0\.0% of the parameters of vit_tiny.*min_share is 90\.0%(.|\n)*MISSING, left random"
    ):
        load(VIT, tmp_path / "w.safetensors")


def test_less_than_the_stated_share_is_refused_and_may_be_allowed(tmp_path: Path) -> None:
    deeper = {**VIT, "model_args": {**VIT["model_args"], "depth": 2}}
    save_file(drawn(VIT).model.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"missing are blocks.1.norm1.weight, .* and 7 more"):
        load(deeper, tmp_path / "w.safetensors")
    assert 0.5 < load(deeper, tmp_path / "w.safetensors", min_share=0.5)[1].share < 0.9


def test_keys_that_the_converter_of_the_architecture_cannot_place_are_one_message(tmp_path: Path) -> None:
    deeper = {**SWIN, "model_args": {**SWIN["model_args"], "depths": [2, 1, 2]}}
    save_file(drawn(deeper).model.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="timm cannot convert it for SwinTransformer"):
        load(SWIN, tmp_path / "w.safetensors")


def test_a_file_of_another_hash_is_refused_by_check_and_by_loading(tmp_path: Path) -> None:
    save_file(drawn(VIT).model.state_dict(), tmp_path / "w.safetensors")
    values = params(VIT, of_file(tmp_path / "w.safetensors", sha256="0" * 64))
    message = f"sha256 {sha256_of(tmp_path / 'w.safetensors')}, but weights.sha256 is 0000"
    with pytest.raises(ConfigError, match=message):
        check_weights(values)
    with pytest.raises(ConfigError, match=message):
        load_initial_weights(build_backbone(values, spec(4)), values)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"kind": "file", "path": "/nowhere/w.pth", "sha256": "0" * 64, "min_share": 0.9}, "no such file"),
        ({"kind": "timm", "tag": "in1", "sha256": None, "min_share": 0.9}, "timm has augreg_in21k, augreg_in21k_ft"),
    ],
)
def test_weights_that_cannot_be_there_are_refused_before_any_work(weights: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_weights(params(VIT, weights))


@pytest.mark.parametrize("kind", ["file", "timm", "package"])
def test_a_misspelt_key_of_weights_is_compared_with_its_own_kind(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"weights\.\w+\.sha: unknown key; did you mean 'sha256'\?"):
        params(VIT, {"kind": kind, "path": "w", "tag": "w", "package": "w", "min_share": 0.5, "sha": ""})


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def test_a_file_with_code_in_it_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": drawn(VIT).model.state_dict(), "extra": Payload()}, "w.pth")
    with pytest.raises(ConfigError, match=r"reading it would run code \(\S+\)\. Save its"):
        load(VIT, tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"not tensors", "not a readable file of weights"),
        ("w.pth", b"not tensors", "w.pth: (not a readable|refused)"),
        ("w.pth", pickle.dumps([1], protocol=2), "w.pth: (not a readable|refused)"),
    ],
)
def test_a_file_that_holds_no_weights_is_one_message(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load(VIT, tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3), "holds a Tensor; expected a state dict"),
        ({"epoch": 3, "model": {"lr": 0.1}}, r"no tensors in model, only \['lr'\]"),
        ({"norm.bias": torch.ones(2), "module.norm.bias": torch.ones(2)}, "differ only in module"),
        ({"norm.bias": torch.tensor([1.0, float("nan")])}, "norm.bias hold NaN"),
    ],
)
def test_contents_that_are_no_weights_are_one_message(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=message):
        load(VIT, tmp_path / "w.pth")


def test_student_and_teacher_start_from_the_weights_and_the_model_needs_the_file_no_more(tmp_path: Path) -> None:
    backbone = tiny_params().backbone
    source = build_backbone(backbone, tiny_grid().spec)
    save_file(source.model.state_dict(), tmp_path / "w.safetensors")
    values = {**backbone.model_dump(), "weights": of_file(tmp_path / "w.safetensors")}
    state = build_state(tiny_params(backbone=values), tiny_grid(), torch.device("cpu"))
    assert "INITIAL WEIGHTS" in (take_first_weights(state, tiny_params(backbone=values)) or "")
    for network in (state.student, state.teacher):
        assert all(torch.equal(v, source.state_dict()[k]) for k, v in network.backbone.state_dict().items())
    (tmp_path / "model").mkdir()
    config = {
        "format_version": FORMAT_VERSION,
        "params": {
            "pretrain": tiny_params(backbone=values).model_dump(mode="json", by_alias=True),
            "grid": tiny_grid().spec.to_json(),
            "batches": {name: {"mix": mix.model_dump(mode="json")} for name, mix in tiny_mix().items()},
        },
        "shards": [],
        "start_from": {},
        "steps": 0,
        "num_processes": 1,
        "device": "cpu",
        "versions": {},
    }
    save_model(tmp_path / "model", state.student, state.teacher, TrainedConfig.model_validate(config))
    (tmp_path / "w.safetensors").unlink()
    loaded = load_encoder(tmp_path / "model")
    assert all(torch.equal(v.cpu(), source.state_dict()[k]) for k, v in loaded.backbone.state_dict().items())


def test_weights_leave_the_random_start_of_everything_else_alone(tmp_path: Path) -> None:
    backbone = tiny_params().backbone
    save_file(build_backbone(backbone, tiny_grid().spec).model.state_dict(), tmp_path / "w.safetensors")
    heads = []
    for weights in (None, of_file(tmp_path / "w.safetensors")):
        torch.manual_seed(3)
        values = {**backbone.model_dump(), "weights": weights}
        state = build_state(tiny_params(backbone=values), tiny_grid(), torch.device("cpu"))
        take_first_weights(state, tiny_params(backbone=values))
        heads.append({k: v for k, v in state.student.state_dict().items() if not k.startswith("backbone.")})
    assert all(torch.equal(value, heads[1][key]) for key, value in heads[0].items())


def attempt(name: str, sha256: str | None) -> WeightsReport:
    values = params(
        {"name": name, "model_args": {}}, {"kind": "timm", "tag": "r160_in1k", "sha256": sha256, "min_share": 0.9}
    )
    backbone = build_backbone(values, spec(4))
    before = torch.random.get_rng_state()
    report = load_initial_weights(backbone, values)
    assert report is not None
    assert torch.equal(before, torch.random.get_rng_state())
    return report


def test_weights_by_name_come_from_timm_and_without_network_from_its_cache_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What HF_HOME and HF_HUB_OFFLINE=1 set where they are there when Python starts.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    published = timm.create_model("test_vit").state_dict()
    repository = tmp_path / "hub/models--timm--test_vit.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("f" * 40)
    (repository / "snapshots" / ("f" * 40)).mkdir(parents=True)
    save_file(published, repository / "snapshots" / ("f" * 40) / "model.safetensors")
    digest, loaded = tensors_sha256(published), attempt("test_vit", None)
    assert (loaded.sha256, loaded.share, loaded.unused) == (digest, 1.0, ("head.weight", "head.bias"))
    assert [entry.key for entry in loaded.adapted] == ["pos_embed", "patch_embed.proj.weight"]
    message = rf"timm's test_vit\.r160_in1k: found sha256 {digest}, but weights\.sha256 is 0000"
    with pytest.raises(ConfigError, match=message):
        attempt("test_vit", "0" * 64)
    with pytest.raises(ConfigError, match=r"weights test_vit2\.r160_in1k: timm could not get them"):
        attempt("test_vit2", None)


def test_the_digest_of_tensors_is_of_names_types_shapes_and_numbers() -> None:
    states = [
        {"a": torch.zeros(2, 2)},
        {"b": torch.zeros(2, 2)},
        {"a": torch.zeros(4)},
        {"a": torch.zeros(2, 2, dtype=torch.int32)},
        {"a": torch.tensor([[0.0, 0.0], [0.0, 1.0]])},
    ]
    assert len({tensors_sha256(state) for state in states}) == len(states)
    assert tensors_sha256({"a": torch.arange(6).reshape(2, 3).T}) == tensors_sha256(
        {"a": torch.arange(6).reshape(2, 3).T.contiguous()}
    )
