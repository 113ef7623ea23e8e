"""The map of a finished encoder's tokens: against plain loops, and what becomes of it in a model folder."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from ace.data.crops import resample
from ace.data.loader import CropDataset, StepSampler, _generator
from ace.embed.encoder import load_encoder, untrained_encoder
from ace.engine.stop import EXIT_CODE
from ace.models.backbone import Backbone, build_backbone
from ace.models.folder import WEIGHTS, WHITENING
from ace.pretrain.params import PretrainParams
from ace.pretrain.whitening import fit_whitening, whitening_map
from shards.core.grid import CropPair, GridSpec, draw_crop_pair, scale_of_step
from shards.core.params import MixParams
from shards.reading.reader import ShardIndex, ShardReader
from tests.ace.pretrain.conftest import BATCH, tiny_grid, tiny_mix, tiny_params
from tests.ace.pretrain.runs import assert_equal_to_the_bit, finish, signal_when, start_run

Members = list[tuple[ShardIndex, MixParams]]


def random_moment(width: int, seed: int) -> torch.Tensor:
    rows = torch.randn(3 * width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows *= torch.logspace(-3, 0, width, dtype=torch.float64)
    return rows.T @ rows


@given(st.integers(1, 12), st.integers(0, 2**31), st.floats(0.01, 1.0))
def test_mapped_errors_are_alike_in_all_directions(width: int, seed: int, shrinkage: float) -> None:
    error = random_moment(width, seed)
    weight = whitening_map(error, shrinkage)
    shrunk = (1 - shrinkage) * error + shrinkage * error.trace() / width * torch.eye(width, dtype=torch.float64)
    white = weight @ shrunk @ weight
    assert torch.allclose(white / white[0, 0], torch.eye(width, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(weight, weight.T, atol=1e-12)
    assert torch.linalg.eigvalsh(weight).max() == pytest.approx(1.0)


def test_no_error_and_full_shrinkage_leave_tokens_as_they_are() -> None:
    identity = torch.eye(5, dtype=torch.float64)
    assert torch.equal(whitening_map(torch.zeros(5, 5, dtype=torch.float64), 0.5), identity)
    assert torch.allclose(whitening_map(random_moment(5, 0), 1.0), identity)


def test_any_shrinkage_gives_a_map_of_finite_numbers() -> None:
    rows = torch.randn(16, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert whitening_map(rows.T @ rows, 1e-18).isfinite().all()


def cells_of(pair: CropPair, name: str, row: int, col: int) -> set[tuple[int, int]]:
    """Cells of the canvas that a token of a crop shows."""
    origin, (height, width) = getattr(pair, name), (pair.k, pair.l) if name == "coarse" else (1, 1)
    return {(origin[0] + height * row + i, origin[1] + width * col + j) for i in range(height) for j in range(width)}


def mean_in_overlap(tokens: np.ndarray, pair: CropPair, name: str, t: int) -> np.ndarray:
    """Mean of a crop's tokens all of whose cells the other crop shows too."""
    other = "fine" if name == "coarse" else "coarse"
    seen = set().union(*(cells_of(pair, other, row, col) for row in range(t) for col in range(t)))
    inside = [tokens[r, c] for r in range(t) for c in range(t) if cells_of(pair, name, r, c) <= seen]
    return np.mean(inside, axis=0)


def error_by_loops(
    backbone: Backbone, members: Members, spec: GridSpec, params: PretrainParams, num_steps: int
) -> np.ndarray:
    """Second moment of what the two crops' means differ by."""
    channels = params.backbone.in_channels
    dataset = CropDataset(
        members,
        spec,
        objective="ace",
        views=params.views,
        crops="fresh",
        augment=None,
        in_channels=channels,
        seed=params.seed,
    )
    steps = list(StepSampler(dataset, batch_size=8, rank=0, world_size=1, first_step=0, epochs=params.epochs))
    readers, rows = [ShardReader(index) for index, _ in members], [index.select("train") for index, _ in members]
    error = np.zeros((backbone.width, backbone.width))
    for requests in steps[:num_steps]:
        for member, position, step, _ in requests:
            mix = members[member][1]
            mean, std = (np.reshape(np.array(values, np.float64), (-1, 1, 1)) for values in (mix.mean, mix.std))
            sample = readers[member].read(int(rows[member][position]))
            pair = draw_crop_pair(
                spec, scale_of_step(spec, params.seed, step), _generator(params.seed, step, sample.key)
            )
            means = []
            for name in ("coarse", "fine"):
                crop = np.stack([resample(sample.image, pair.window(name, spec), spec.crop_px)] * channels)
                with torch.inference_mode():
                    tokens = backbone(torch.from_numpy((crop / 255 - mean) / std).float()[None])[0].double()
                means.append(mean_in_overlap(tokens.numpy(), pair, name, spec.t))
            error += np.outer(means[0] - means[1], means[0] - means[1])
    return error


def mix_of(weight: float, mean: Any, std: Any) -> MixParams:
    return MixParams.from_params({"weight": weight, "mean": mean, "std": std}, "b")


ONE = [mix_of(1.0, 0.5, 0.25)]
UNLIKE = [mix_of(1.0, 0.5, 0.25), mix_of(3.0, 0.3, 0.1)]
COLOUR = [mix_of(1.0, [0.5, 0.4, 0.3], [0.25, 0.2, 0.1])]


@pytest.mark.parametrize(
    ("mixes", "num_pairs", "num_steps", "shrinkage", "changes"),
    [
        pytest.param(ONE, 17, 3, 0.3, {}, id="one shard set"),
        pytest.param(ONE, 17, 3, 0.3, {"num_micro_batches": 2}, id="micro-batches"),
        pytest.param(ONE, 17, 3, 1e-5, {}, id="numbers that need float64"),
        pytest.param(ONE, 2000, None, 0.3, {"epochs": 2}, id="more pairs than the run has"),
        pytest.param(UNLIKE, 40, 5, 0.3, {}, id="a mix of shard sets with their own normalisation"),
        pytest.param(COLOUR, 17, 3, 0.3, {"in_channels": 3}, id="colour"),
    ],
)
def test_the_map_is_that_of_plain_loops_over_crops_and_tokens(
    noise_shards: Path,
    mixes: list[MixParams],
    num_pairs: int,
    num_steps: int | None,
    shrinkage: float,
    changes: dict[str, Any],
) -> None:
    changes = {**changes, "whitening": {"num_pairs": num_pairs, "shrinkage": shrinkage}}
    backbone_params = tiny_params().backbone.model_dump(mode="json")
    changes["backbone"] = {**backbone_params, "in_channels": changes.pop("in_channels", 1)}
    params, spec = tiny_params(**changes), tiny_grid().spec
    members = [(ShardIndex.open(noise_shards / BATCH), mix) for mix in mixes]
    torch.manual_seed(0)
    backbone = build_backbone(params.backbone, spec).eval()
    num_steps = sys.maxsize if num_steps is None else num_steps
    found = fit_whitening({"teacher": backbone}, members, spec, params, torch.device("cpu"))["teacher"]
    expected = whitening_map(torch.from_numpy(error_by_loops(backbone, members, spec, params, num_steps)), shrinkage)
    assert (found - expected).abs().max() < 1e-4


@pytest.fixture(scope="module")
def finished(noise_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whitened")
    finish(start_run(noise_shards, out, whitening={"num_pairs": 16, "shrinkage": 0.5}))
    return out / "model"


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_a_finished_encoder_maps_its_tokens(finished: Path, which: Any) -> None:
    encoder = load_encoder(finished, which, device="cpu")
    weight = load_file(finished / WEIGHTS[which])[WHITENING]
    images = torch.randn(3, 1, encoder.spec.crop_px, encoder.spec.crop_px)
    with torch.inference_mode():
        found = encoder.backbone(images)
        encoder.backbone.whitening = torch.nn.Identity()
        assert torch.allclose(found, encoder.backbone(images) @ weight.T, atol=1e-6)
    assert not torch.allclose(weight, torch.eye(len(weight)), atol=1e-2)
    assert "fitted on 16 crop pairs, shrinkage 0.5" in (finished / "README.md").read_text()


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_the_map_is_fitted_to_the_finished_network_on_the_images_that_trained_it(
    finished: Path, noise_shards: Path, which: Any
) -> None:
    encoder = load_encoder(finished, which, device="cpu")
    weight = encoder.backbone.state_dict()[WHITENING]
    encoder.backbone.whitening = torch.nn.Identity()
    params = tiny_params(whitening={"num_pairs": 16, "shrinkage": 0.5})
    members = [(ShardIndex.open(noise_shards / BATCH), tiny_mix()[BATCH])]
    again = fit_whitening({which: encoder.backbone}, members, encoder.spec, params, torch.device("cpu"))
    assert torch.allclose(again[which], weight, atol=1e-5)


def test_an_untrained_encoder_of_a_whitened_model_has_no_map(finished: Path) -> None:
    assert not untrained_encoder(finished, 0).backbone.is_whitened
    assert load_encoder(finished, device="cpu").backbone.is_whitened


def test_a_new_run_starts_from_the_tokens_before_the_map(finished: Path, noise_shards: Path, tmp_path: Path) -> None:
    finish(start_run(noise_shards, tmp_path, start_from=str(finished), whitening=None, epochs=2))
    assert WHITENING not in load_file(tmp_path / "model" / WEIGHTS["teacher"])
    account = (tmp_path / "model/start.txt").read_text()
    assert "unused" not in account


def test_a_model_of_the_format_before_the_map_is_read(noise_shards: Path, tmp_path: Path) -> None:
    finish(start_run(noise_shards, tmp_path, whitening=None, epochs=2))
    path = tmp_path / "model/config.json"
    config = json.loads(path.read_text())
    config |= {"format_version": 3}
    del config["params"]["pretrain"]["whitening"]
    path.write_text(json.dumps(config))
    assert not load_encoder(tmp_path / "model", device="cpu").backbone.is_whitened


STARTS_FITTING = """
import time
from pathlib import Path
import ace.pretrain.whitening as whitening
pairs = whitening._pairs
def slow(*arguments):
    Path("fitting").touch()
    for batch in pairs(*arguments):
        time.sleep(0.3)
        yield batch
whitening._pairs = slow
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(signal.SIGTERM, EXIT_CODE, marks=pytest.mark.slow), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_run_that_ends_while_the_map_is_fitted_goes_on_to_the_same_model(
    finished: Path, noise_shards: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    whitening = {"num_pairs": 16, "shrinkage": 0.5}
    stopped = start_run(noise_shards, tmp_path, prelude=STARTS_FITTING, whitening=whitening)
    signal_when(stopped, (tmp_path / "fitting").exists, number)
    (error,) = finish(stopped, code)
    assert ("SIGTERM: all steps are trained and saved" in error) == (number == signal.SIGTERM)
    assert not (tmp_path / "model").exists()
    finish(start_run(noise_shards, tmp_path, whitening=whitening))
    assert_equal_to_the_bit(tmp_path / "model", finished)
