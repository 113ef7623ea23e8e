"""The online probe on real shards: stripes are a label that can be seen, a coin is one that cannot."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ace.data.crops import resample
from ace.models.backbone import Backbone, build_backbone
from ace.pretrain import probe as probe_module
from ace.pretrain.monitor_params import ProbeParams
from ace.pretrain.probe import ProbePlan, plan_probe, run_probe
from shards.build.stage import build_shards
from shards.core.errors import ConfigError
from shards.core.params import MixParams, PhantomSourceParams, ShardParams
from shards.reading.reader import ShardIndex, ShardReader
from shards.runtime.execution import Processes
from tests.ace.pretrain.conftest import demo_values, tiny_grid, tiny_params
from tests.oracles import probe as oracle
from tests.support.datasets import NO_CHECKS

CPU = torch.device("cpu")
Members = list[tuple[ShardIndex, MixParams]]


def probe_params(**changes: Any) -> ProbeParams:
    values = {
        "every_epochs": 1,
        "k": 7,
        "temperature": 0.07,
        "linear_l2": 0.1,
        "max_train_images": 1000,
        "max_val_images": 1000,
        "min_positives": 3,
        "images_per_forward": 16,
        "labels": None,
    }
    return ProbeParams.from_params({**values, **changes}, "test: probe")


def write_striped_dataset(root: Path, num_patients: int, first_patient: int) -> None:
    """Two images a patient: noise over horizontal or vertical stripes, in the phantom's layout."""
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(first_patient)
    rows = []
    for patient in range(first_patient, first_patient + num_patients):
        for number in range(2):
            is_striped, name = int(rng.integers(2)), f"p{patient:04d}-i{number}"
            wave = np.broadcast_to(80 * np.sign(np.sin(np.arange(64) * np.pi / 2 + 0.1)), (64, 64))
            pixels = 128 + (wave if is_striped else wave.T) + rng.normal(0, 20, (64, 64))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{name}.png")
            stripes = is_striped if rng.random() < 0.8 else rng.choice(["-1", ""])
            rare = int(patient == first_patient)
            rows.append([name, f"p{patient:04d}", f"s{patient}", "PA", stripes, rng.integers(2), rare, -1])
    with (root / "labels.csv").open("w", newline="") as file:
        header = ["image_id", "patient_id", "study_id", "view", "stripes", "coin", "rare", "unsure"]
        csv.writer(file).writerows([header, *rows])
    (root / "landmarks.csv").write_text("image_id,landmark,row,col\n")
    (root / "dataset.json").write_text(json.dumps({"name": "striped"}))


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Members:
    """Two shard sets of 50 and 20 patients with two images each, 60 % of them for training."""
    root = tmp_path_factory.mktemp("striped")
    values = {**demo_values("shard"), "splits": {"train": 0.6, "val": 0.4, "test": 0.0}, "num_bank_pairs": 0}
    values["quality"] = NO_CHECKS  # half the images are unlike the other half on purpose
    found = []
    for name, num_patients, first_patient in (("striped-b000", 50, 0), ("striped-b001", 20, 500)):
        write_striped_dataset(root / f"raw-{name}", num_patients, first_patient)
        source = PhantomSourceParams(kind="phantom", dep=str(root / f"raw-{name}"))
        mix = MixParams.from_params({"weight": 1.0, "mean": 0.5, "std": 0.25}, name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ACE_SCRATCH", str(root / "scratch"))
            params = ShardParams.from_params(values, "shard")
            build_shards(name, source, tiny_grid(), params, root / "shards" / name, execution=Processes(1))
        found.append((ShardIndex.open(root / "shards" / name), mix))
    return found


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_backbone(tiny_params().backbone, tiny_grid().spec).eval()


def probe(backbone: Backbone, plan: ProbePlan, params: ProbeParams) -> dict[str, float]:
    return run_probe(backbone, plan, params, in_channels=1, precision="fp32", device=CPU)


def test_a_label_that_shows_scores_high_and_one_that_does_not_scores_chance(
    members: Members, backbone: Backbone
) -> None:
    params = probe_params()
    plan = plan_probe(members, params, seed=0)
    found = probe(backbone, plan, params)
    assert plan.labels == ("coin", "stripes"), "the rare and the uncertain label cannot be scored"
    assert set(found) == {
        *(f"probe_{name}_auroc" for name in ("knn", "linear")),
        *(f"probe_{name}_auroc_of/{label}" for name in ("knn", "linear") for label in plan.labels),
        *(f"probe_num_{what}" for what in ("train", "val", "labels")),
    }
    for name in ("knn", "linear"):
        coin, stripes = (found[f"probe_{name}_auroc_of/{label}"] for label in plan.labels)
        assert stripes > 0.95
        assert 0.2 < coin < 0.8
        assert found[f"probe_{name}_auroc"] == pytest.approx((coin + stripes) / 2)
    num_images = [sum(len(index.select(split)) for index, _ in members) for split in ("train", "val")]
    assert [found["probe_num_train"], found["probe_num_val"], found["probe_num_labels"]] == [*num_images, 2]


def test_labels_are_those_of_the_samples_and_uncertain_ones_are_not_known(members: Members) -> None:
    plan = plan_probe(members, probe_params(), seed=0)
    uncertain = 0
    for images, split in ((plan.train, "train"), (plan.val, "val")):
        for (number, row), answers in zip(images.places, images.labels, strict=True):
            sample = ShardReader(members[number][0]).read(row)
            assert sample.split == split
            for label, answer in zip(plan.labels, answers, strict=True):
                expected = sample.meta["labels"][label]
                assert answer == (expected if expected in (0, 1) else -1)
                uncertain += answer == -1
    assert uncertain > 0


def test_scores_are_those_of_the_mean_over_all_tokens_of_the_whole_image(members: Members, backbone: Backbone) -> None:
    params = probe_params(images_per_forward=5)
    plan = plan_probe(members, params, seed=0)
    found = probe(backbone, plan, params)
    features = []
    for images in (plan.train, plan.val):
        rows = []
        for number, row in images.places:
            index = members[number][0]
            canvas = ShardReader(index).read(row).image
            crop = resample(canvas, (0, 0, len(canvas), len(canvas)), index.spec.crop_px)
            with torch.no_grad():
                tokens = backbone(((torch.from_numpy(crop.copy()).float() / 255 - 0.5) / 0.25)[None, None])[0].double()
            total = sum(tokens[i, j] for i in range(index.spec.t) for j in range(index.spec.t))
            rows.append((total / total.norm()).numpy())
        features.append(np.stack(rows))
    train, val = features
    for number, label in enumerate(plan.labels):
        answers = plan.train.labels[:, number]
        votes = [oracle.knn_vote(train, answers, query, params.k, params.temperature) for query in val]
        expected = oracle.auroc(plan.val.labels[:, number], np.array(votes))
        assert found[f"probe_knn_auroc_of/{label}"] == pytest.approx(expected, abs=1e-3)


def test_features_do_not_depend_on_how_many_images_go_forward_together(members: Members, backbone: Backbone) -> None:
    few, many = probe_params(images_per_forward=3), probe_params(images_per_forward=1000)
    plan = plan_probe(members, few, seed=0)
    first, second = probe(backbone, plan, few), probe(backbone, plan, many)
    assert first == pytest.approx(second, abs=0.02)


def test_each_set_is_normalised_by_its_own_mean_and_deviation(members: Members, backbone: Backbone) -> None:
    seen: list[torch.Tensor] = []
    handle = backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    shifted = [(index, mix.model_copy(update={"mean": (float(i),)})) for i, (index, mix) in enumerate(members)]
    params = probe_params(images_per_forward=1)
    plan = plan_probe(shifted, params, seed=0)
    try:
        probe(backbone, plan, params)
    finally:
        handle.remove()
    is_first_set = [number == 0 for number, _ in (*plan.train.places, *plan.val.places)]
    assert [bool(image.mean() > 0) for image in seen] == is_first_set


def test_a_probe_is_repeatable_and_leaves_the_global_generators_alone(members: Members, backbone: Backbone) -> None:
    params = probe_params()
    plan = plan_probe(members, params, seed=0)
    first = probe(backbone, plan, params)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 (the generator that must not be drawn from)
    before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    again = plan_probe(members, params, seed=0)
    assert probe(backbone, again, params) == first
    after = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert all(np.array_equal(one, other) for one, other in zip(before[1], after[1], strict=True))


def test_bounds_are_kept_with_whole_patients_of_every_set(members: Members) -> None:
    params = probe_params(max_train_images=30, max_val_images=20, min_positives=1)
    plan = plan_probe(members, params, seed=1)
    for images, limit in ((plan.train, 30), (plan.val, 20)):
        assert len(images.places) == limit
        assert list(images.places) == sorted(set(images.places))
        patients = [members[number][0].rows["patient"][row].decode() for number, row in images.places]
        assert all(patients.count(patient) == 2 for patient in patients)
        assert {number for number, _ in images.places} == {0, 1}
    assert plan_probe(members, params, seed=1).val.places == plan.val.places
    assert plan_probe(members, params, seed=2).val.places != plan.val.places


def test_only_the_labels_asked_for_are_scored(members: Members) -> None:
    assert plan_probe(members, probe_params(labels=["stripes", "rare"]), seed=0).labels == ("stripes",)


def test_a_label_that_is_nowhere_is_named_with_those_there_are(members: Members) -> None:
    with pytest.raises(ConfigError, match=r"asks for \['strips'\].*there are: coin, rare, stripes, unsure"):
        plan_probe(members, probe_params(labels=["strips"]), seed=0)


def test_labels_that_cannot_be_scored_are_listed_with_what_was_found(members: Members) -> None:
    with pytest.raises(ConfigError, match=r"can score no label.*unsure: train 0 with, 0 without; val 0 with, 0 wit"):
        plan_probe(members, probe_params(labels=["unsure"]), seed=0)
    with pytest.raises(ConfigError, match=r"at least 500 of both \(probe.min_positives\)"):
        plan_probe(members, probe_params(min_positives=500), seed=0)


def test_shards_without_images_to_score_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs images of the split 'train'"):
        plan_probe([], probe_params(), seed=0)


def test_features_are_computed_in_the_precision_that_a_finished_encoder_would_have(
    members: Members, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator, where this is the training's; the scores stay those of fp32 but for rounding."""
    params = probe_params()
    plan = plan_probe(members, params, seed=0)
    expected = probe(backbone, plan, params)
    monkeypatch.setattr(probe_module, "finished_precision", lambda precision, device: "bf16")
    dtypes: set[torch.dtype] = set()
    layer = next(module for module in backbone.modules() if isinstance(module, torch.nn.Conv2d))
    with layer.register_forward_hook(lambda module, inputs, out: dtypes.add(out.dtype)):
        found = probe(backbone, plan, params)
    assert dtypes == {torch.bfloat16}
    assert found["probe_linear_auroc_of/stripes"] == pytest.approx(expected["probe_linear_auroc_of/stripes"], abs=0.03)
