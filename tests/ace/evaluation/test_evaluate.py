import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from ace.__main__ import build_parser
from ace.embed.embedder import Embedder
from ace.evaluation.at_once import evaluate_at_once
from ace.evaluation.bounds import Bound
from ace.evaluation.cohort import choose_cohort
from ace.evaluation.evaluate import evaluate
from ace.evaluation.measured import MeasuredSplit
from ace.evaluation.params import EvaluateParams, parse_encoders
from ace.protocol import features
from ace.protocol.cohort import choose_rows, read_cohort
from ace.protocol.dense import LocationAxis
from ace.report.inputs import ReportInputs
from ace.report.summary import summary_table
from shards.build.stage import build_shards
from shards.cli import run_command
from shards.core.errors import ConfigError, ContaminationError
from shards.core.identity import SPLITS
from shards.core.params import MeasuredParams, PhantomSourceParams, ShardParams
from shards.delivery.batches import batch_path
from shards.format.exclusion import exclusion_path, format_exclusion, list_path, parse_list
from shards.reading.image_names import IMAGE_NAMES
from shards.reading.lineage import TRAINING_IMAGES, write_lineage
from shards.reading.reader import ShardIndex, ShardReader
from tests.ace.evaluation.drawn_project import (
    BATCH,
    ENCODERS,
    EVALUATE,
    GRID,
    SHARD,
    draw_chest,
    encoders_of,
    paths_of,
    with_properties,
    write_imported,
    write_model,
    write_project,
)
from tests.support.datasets import Here, forget_patients, write_csv
from tests.support.datasets import write_project as write_batch_project

PARAMS = EvaluateParams.from_params(EVALUATE, "evaluate")
ON_VALIDATION = with_properties(decomposition=EVALUATE["properties"]["decomposition"] | {"num_candidates": 2}) | {
    "split": "val"
}
OF_PARTS = {name: EVALUATE["properties"][name] for name in ("composition", "decomposition")}
"""The properties that any image has, where a test is about whom was measured and not about what."""
FILLS = tuple(EVALUATE["properties"]["decomposition"]["fills"])
TWO = ("trained", "untrained")
NETWORKS = {"trained": "teacher", "untrained": "untrained"}
DETAILS = ("correspondence", "labels", "cosegmentation")
SECTIONS = (*DETAILS, "baselines", "measured")
LEFT_OUT = "decompositionality_among_128"
REMOVAL = ("removal_erased_length", "removal_change_outside")
LESS_IS_BETTER = (
    "correspondence_px_at_1024",
    "correspondence_median_px_at_1024",
    "mutual_matches_px_at_1024",
    *REMOVAL,
)


def run(
    project: Path,
    out: Path,
    params: EvaluateParams = PARAMS,
    *,
    model: Path | None = None,
    shards: Path | None = None,
    names: tuple[str, ...] = ENCODERS,
    measured: MeasuredParams | None = None,
) -> dict[str, Any]:
    """All stages of the evaluation, whose results go below `out`; the metrics."""
    encoders = encoders_of(project, model=model, names=names)
    evaluate_at_once(params, encoders, paths_of(project, out, shards=shards), measured)
    return read(out / "properties.json")


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("project")
        patch.setenv("ACE_SCRATCH", str(root / "scratch"))
        yield write_project(root)


@pytest.fixture(scope="module")
def result(project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("out")
    return run(project, out), out


@pytest.fixture(scope="module")
def on_validation(project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """As `result`, of the validation split, by a model that says what it was trained on and has no student."""
    out = tmp_path_factory.mktemp("val")
    model = out / "model"
    shutil.copytree(project / "models/ace", model)
    (model / "student_backbone.safetensors").unlink()  # it is not what is measured
    write_lineage(model, {BATCH: ShardIndex.open(project / "data/shards" / BATCH)})
    return run(project, out, EvaluateParams.from_params(ON_VALIDATION, "evaluate"), model=model, names=TWO), out


@pytest.mark.slow
def test_every_figure_has_its_n_chance_and_an_interval_around_it(result: tuple[dict[str, Any], Path]) -> None:
    figures, _ = result
    assert list(figures) == [*ENCODERS, "gain", "gain_over_imagenet", *SECTIONS]
    for encoder in ENCODERS:
        assert figures[encoder].keys() >= {"compositionality", "decompositionality", "correspondence_px_at_1024"}
        assert figures[encoder].keys() >= {f"decompositionality_{fill}" for fill in FILLS[1:]}
        assert f"{PARAMS.max_patients} test patients" in figures[encoder][LEFT_OUT]["reason"]
        for name, figure in figures[encoder].items():
            if name == LEFT_OUT:
                continue
            assert figure["low"] <= figure["value"] <= figure["high"]
            assert figure["n"] >= 4
            assert ("chance" in figure) == (name not in REMOVAL)
        for name in REMOVAL:
            assert figures[encoder][name]["num_regions"] == 2 * figures[encoder][name]["n"]
    assert figures["trained"]["decompositionality"]["num_candidates"] == 8
    assert figures["trained"]["decompositionality"]["chance"] == 0.125
    assert figures["trained"]["compositionality"]["chance"] == 0
    assert figures["trained"]["compositionality"] != figures["untrained"]["compositionality"]


def test_the_metrics_say_which_weights_and_which_patients_they_are_of(
    project: Path, result: tuple[dict[str, Any], Path], on_validation: tuple[dict[str, Any], Path]
) -> None:
    weights = project / "models/ace/teacher_backbone.safetensors"
    expected = {
        "model_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "batch": BATCH,
        "split": "test",
        "num_patients": PARAMS.max_patients,
        "num_shared_patients": None,
        "batches_that_may_share_images": None,
    }
    assert result[0]["measured"] == expected, "nothing tells what a model without lists was trained on"
    found, _ = on_validation
    expected |= {"split": "val", "num_shared_patients": 0, "batches_that_may_share_images": []}
    assert found["measured"] == expected | {"num_patients": found["trained"]["compositionality"]["n"]}


def test_it_is_said_where_patients_are_unknown(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(project / "data/shards", tmp_path / "shards")
    forget_patients(tmp_path / "shards" / BATCH)
    params = EvaluateParams.from_params(EVALUATE | {"properties": OF_PARTS | {"labels": {}}}, "evaluate")
    found = run(project, tmp_path, params, shards=tmp_path / "shards", names=TWO)
    assert f"warning: {BATCH}: patients are unknown (patient_grouping: image)" in capsys.readouterr().err
    assert found["measured"]["batches_without_patients"] == [BATCH]
    table = summary_table(tmp_path / "properties.json", tmp_path / "evidence/protocol.json")
    assert f"patients of {BATCH} are unknown" in table
    assert f"test images of {BATCH}" in table
    assert "set to another image's tissue" in table


def write_copies(root: Path, project: Path, keys: Sequence[str]) -> ShardIndex:
    """A training set with drawn chests of its own, and images of the project that were stored again.

    The first has the same pixels, the others have another size.
    """
    rng = np.random.default_rng(9)
    images = [draw_chest(rng)[0] for _ in range(6)]
    stored = [Image.open(project / f"data/phantom/images/{key}.png") for key in keys]
    images += [stored[0], *(image.resize((120, 120), Image.Resampling.BICUBIC) for image in stored[1:])]
    names = [f"q{number}" for number in range(len(images))]
    (root / "raw/images").mkdir(parents=True)
    for name, image in zip(names, images, strict=True):
        image.save(root / f"raw/images/{name}.png")
    (root / "raw/dataset.json").write_text('{"name": "phantom"}')
    rows = [(name, name, f"{name}-s0", "PA", 0) for name in names]
    write_csv(root / "raw/labels.csv", ("image_id", "patient_id", "study_id", "view", "nodule"), rows)
    write_csv(root / "raw/landmarks.csv", ("image_id", "landmark", "row", "col"), [])
    source = PhantomSourceParams(kind="phantom", dep=str(root / "raw"))
    splits = {"splits": {"train": 1.0, "val": 0.0, "test": 0.0}}
    shard = ShardParams.from_params(SHARD | splits, "shard")
    build_shards("copies-b000", source, GRID, shard, root / "shards/copies-b000", execution=Here())
    return ShardIndex.open(root / "shards/copies-b000")


def test_patients_whose_pictures_were_trained_on_in_another_set_are_not_measured(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACE_SCRATCH", str(tmp_path / "scratch"))
    own = ShardIndex.open(project / "data/shards" / BATCH)
    rows = choose_rows(own, "test", PARAMS.max_patients, PARAMS.seed)
    patients = own.rows["patient"]
    # Of one patient the image that stands for it, of another one the second image, which the probe alone would see.
    in_split = own.select("test")
    others = in_split[np.isin(patients[in_split], patients[rows[1:]]) & ~np.isin(in_split, rows)]
    copied = own.keys(np.array([rows[0], others[0]]))
    copies = write_copies(tmp_path, project, copied)
    shutil.copytree(project / "data/shards" / BATCH, tmp_path / "shards" / BATCH)
    model = tmp_path / "model"
    shutil.copytree(project / "models/ace", model)
    write_lineage(model, {BATCH: own, "copies-b000": copies})

    params = EvaluateParams.from_params(EVALUATE | {"properties": OF_PARTS | {"labels": {}}}, "evaluate")

    def measured(params: EvaluateParams = params) -> dict[str, Any]:
        return run(project, tmp_path / "out", params, model=model, shards=tmp_path / "shards", names=TWO)

    without = measured()
    said = capsys.readouterr().err
    assert f"2 test patients of {BATCH} have pictures that the model was trained on under other names" in said
    assert "of copies-b000 (correlation" in said
    assert "they are left out" in said
    independence = read(tmp_path / "out/evidence/independence.json")
    assert independence["trained"]["num_patients_with_copies"] == 2
    assert without["measured"]["num_patients"] == PARAMS.max_patients, "others take their places"
    accepted = measured(params.model_copy(update={"accept_shared_images": True}))
    assert "they are all the same measured" in capsys.readouterr().err
    assert accepted["trained"] != without["trained"]
    shutil.rmtree(tmp_path / "shards/copies-b000")
    measured()
    said = capsys.readouterr().err
    assert "copies-b000: found no shard set in a local folder, although the model was trained on it; so" in said
    assert "num_patients_with_copies" not in read(tmp_path / "out/evidence/independence.json")["trained"]


def test_the_command_measures_on_another_set_with_its_own_normalisation(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACE_SCRATCH", str(tmp_path / "scratch"))
    source, shard = (
        PhantomSourceParams(kind="phantom", dep=str(project / "data/phantom")),
        ShardParams.from_params(SHARD, "shard"),
    )
    build_shards("other-b000", source, GRID, shard, tmp_path / "data/shards/other-b000", execution=Here())
    params = write_batch_project(tmp_path, "other-b000", source, GRID, shard)
    with params.open("a", encoding="utf-8") as file:
        properties = {"properties": {"composition": EVALUATE["properties"]["composition"]}}
        evaluate_section = ON_VALIDATION | properties | {"accept_shared_images": True}
        encoders = {name: {"model": "models/ace", "network": network} for name, network in NETWORKS.items()}
        YAML(typ="safe").dump({"evaluate": evaluate_section, "encoders": encoders}, file)
    monkeypatch.chdir(tmp_path)
    paths = ["--model", str(project / "models/ace"), "--metrics", "properties.json", "--out", "evidence"]
    command = ["evaluate", "--batch", "other-b000", "--split", "val", *paths]
    assert run_command(build_parser(), command) == 0
    assert json.loads(Path("properties.json").read_text())["measured"]["batch"] == "other-b000"
    text = batch_path("other-b000", tmp_path).read_text(encoding="utf-8")
    assert "mean: 0.5" in text
    before = json.loads(Path("properties.json").read_text())["trained"]
    batch_path("other-b000", tmp_path).write_text(text.replace("mean: 0.5", "mean: 0.1"), encoding="utf-8")
    assert run_command(build_parser(), command) == 0
    assert json.loads(Path("properties.json").read_text())["trained"] != before, "the set's own mean is in use"
    params.write_text(params.read_text(encoding="utf-8").replace("other-b000:", "third-b000:"), encoding="utf-8")
    capsys.readouterr()
    assert run_command(build_parser(), command) == 2
    assert "other-b000" in capsys.readouterr().err


def test_a_published_model_is_not_measured_on_patients_whose_images_it_names(project: Path, tmp_path: Path) -> None:
    index = ShardIndex.open(project / "data/shards" / BATCH)
    model = tmp_path / "model"
    shutil.copytree(project / "models/ace", model)
    names = {
        split: [f"images/{key.decode()}.png" for key in index.rows["key"][index.select(split)]] for split in SPLITS
    }
    properties = {"properties": {"composition": EVALUATE["properties"]["composition"]}}
    params = EvaluateParams.from_params(ON_VALIDATION | properties, "evaluate")
    (model / IMAGE_NAMES).write_text("\n".join([*names["train"], names["val"][0]]))
    with pytest.raises(ContaminationError, match=r"1 of \d+ val patients of phantom-b000, .*have images among the"):
        run(project, tmp_path / "out", params, model=model, names=TWO)
    assert not (tmp_path / "out").exists()
    (model / IMAGE_NAMES).write_text("\n".join(names["train"]))
    run(project, tmp_path / "out", params, model=model, names=TWO)
    independence = read(tmp_path / "out/evidence/independence.json")["trained"]
    assert independence["num_named_images_found"] == len(names["train"])
    assert independence["num_shared_patients"] == 0


def test_other_weights_change_the_trained_row_and_leave_the_untrained_one_as_it_is(
    project: Path, result: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    figures, out = result
    write_model(tmp_path / "model", seed=4)
    found = run(project, tmp_path, model=tmp_path / "model", names=TWO)
    assert found["untrained"] == figures["untrained"]
    same = {name for name in found["trained"] if found["trained"][name] == figures["trained"][name]}
    few = {name for name in same if name.startswith(("retrieval", "symmetry"))}
    assert same <= few | {LEFT_OUT}, "these count few regions and landmarks"
    for path in sorted((tmp_path / "evidence").glob("*.npz")):
        first, second = np.load(path), np.load(out / "evidence" / path.name)
        of_untrained = [name for name in first if name.startswith("untrained_")]
        assert of_untrained or path.stem in ("explorer", "labels", "symmetry")
        for name in of_untrained:
            np.testing.assert_array_equal(first[name], second[name])
            other = name.removeprefix("un")
            assert path.stem == "retrieval" or not np.array_equal(first[other], second[other])


@pytest.mark.parametrize(("key", "other"), [("gain", "untrained"), ("gain_over_imagenet", "imagenet")])
def test_gain_is_positive_where_the_trained_encoder_is_better(
    key: str, other: str, result: tuple[dict[str, Any], Path]
) -> None:
    figures, _ = result
    assert figures[key].keys() == figures["trained"].keys()
    for name, gain in figures[key].items():
        if name == LEFT_OUT:
            assert gain["value"] is None
            continue
        sign = -1 if name in LESS_IS_BETTER else 1
        expected = sign * (figures["trained"][name]["value"] - figures[other][name]["value"])
        assert gain["value"] == pytest.approx(expected, abs=2e-5)
        assert gain["low"] <= gain["value"] <= gain["high"]


def test_each_label_has_its_own_figures_and_the_headline_is_their_mean(
    project: Path, result: tuple[dict[str, Any], Path]
) -> None:
    figures, _ = result
    index = ShardIndex.open(project / "data/shards" / BATCH)
    assert list(figures["labels"]) == ["nodule"], "of cardiomegaly training patients have too few"
    nodule = figures["labels"]["nodule"]
    assert list(nodule) == [*ENCODERS, "gain", "gain_over_imagenet"]
    for name, own in nodule.items():
        assert {key: own[key] for key in ("value", "low", "high", "n")} == {
            key: figures[name]["probe_auroc"][key] for key in ("value", "low", "high", "n")
        }
    assert figures["trained"]["probe_auroc"] | {"num_labels": 1, "chance": 0.5} == figures["trained"]["probe_auroc"]
    counts = index.description.counts.labels["test"]["nodule"]
    assert nodule["trained"]["num_with"] + nodule["trained"]["num_without"] <= counts["1"] + counts["0"]
    assert nodule["trained"]["n"] == PARAMS.max_patients


def test_validation_patients_choose_the_probes_penalty_and_are_not_scored_with_it(
    on_validation: tuple[dict[str, Any], Path],
) -> None:
    figures, _ = on_validation
    assert "labels" not in figures
    for column in ("trained", "untrained", "gain"):
        assert figures[column]["probe_auroc"]["value"] is None
        assert "scored on test patients alone" in figures[column]["probe_auroc"]["reason"]


def test_baselines_are_ordered_affine_oracle_same_pixel_random_guess(result: tuple[dict[str, Any], Path]) -> None:
    figures, _ = result
    baselines = figures["baselines"]["correspondence_px_at_1024"]
    chance = figures["trained"]["correspondence_px_at_1024"]["chance"]
    assert baselines["affine_oracle"]["value"] < baselines["same_pixel"]["value"] < chance


def test_the_same_params_give_the_same_bytes(
    project: Path, result: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    figures, out = result
    assert run(project, tmp_path) == figures
    for path in sorted((out / "evidence").glob("*.npz")):
        first, second = np.load(path), np.load(tmp_path / "evidence" / path.name)
        assert first.keys() == second.keys()
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])


def test_evidence_loads_without_pickle_and_marks_the_right_candidate(result: tuple[dict[str, Any], Path]) -> None:
    _, out = result
    names = sorted(path.name for path in (out / "evidence").iterdir())
    kept = [f"{name}.npz" for name in EVALUATE["properties"]]
    assert names == sorted([*kept, "independence.json", "protocol.json"])
    arrays = np.load(out / "evidence" / "decomposition.npz", allow_pickle=False)
    for encoder in ENCODERS:
        for example, (is_right, rank) in enumerate(
            zip(arrays[f"{encoder}_is_right"], arrays[f"{encoder}_rank"], strict=True)
        ):
            assert is_right.sum() == (rank <= len(is_right))
            if is_right.any():
                assert is_right[rank - 1]
                np.testing.assert_array_equal(arrays[f"{encoder}_best"][example][rank - 1], arrays["removed"][example])
    colours = np.load(out / "evidence" / "colours.npz")
    assert {colours[f"{encoder}_colours"].shape for encoder in ENCODERS} == {(3, 15, 15, 3)}


def test_the_evidence_of_removal_holds_the_same_figures_as_the_metrics(result: tuple[dict[str, Any], Path]) -> None:
    figures, out = result
    arrays = np.load(out / "evidence" / "decomposition.npz", allow_pickle=False)
    assert arrays["removal_image"].shape == arrays["removal_without"].shape == (3, 32, 32)
    for encoder in ENCODERS:
        assert arrays[f"{encoder}_change"].shape == (3, 4, 4)
        for name in REMOVAL:
            found = float(arrays[f"{encoder}_{name.removeprefix('removal_')}"])
            assert figures[encoder][name]["value"] == pytest.approx(found, abs=1e-5)


def test_more_fills_properties_and_encoders_leave_every_other_figure_and_array_as_it_is(
    project: Path, result: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    figures, out = result
    black = EVALUATE["properties"]["decomposition"] | {"fills": ["black"]}
    few = with_properties(decomposition=black, composition=None, retrieval=None, symmetry=None)
    found = run(project, tmp_path, EvaluateParams.from_params(few, "evaluate"), names=TWO)
    assert list(found) == ["trained", "untrained", "gain", *SECTIONS]
    baselines = found.pop("baselines")
    for section in DETAILS:
        for name, detail in found.pop(section).items():
            assert detail.items() <= figures[section][name].items()
    assert baselines.items() <= figures["baselines"].items()
    for name, of_encoder in found.items():
        assert of_encoder.items() <= figures[name].items()
    for path in sorted((tmp_path / "evidence").glob("*.npz")):
        first, second = np.load(path), np.load(out / "evidence" / path.name)
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])
    assert "imagenet" not in summary_table(tmp_path / "properties.json")


def test_the_student_is_an_encoder_like_any_other_and_leaves_the_others_as_they_are(
    project: Path, result: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    figures, _ = result
    found = run(project, tmp_path, names=("trained", "untrained", "student"))
    assert list(found) == ["trained", "untrained", "student", "gain", "gain_over_student", *SECTIONS]
    assert found["trained"] == figures["trained"]
    assert found["untrained"] == figures["untrained"]
    assert found["gain"] == figures["gain"]
    # A fresh teacher is a copy of its student.
    assert found["student"] == found["trained"]
    assert {gain["value"] for name, gain in found["gain_over_student"].items() if name != LEFT_OUT} == {0}


def test_figures_are_made_of_answers_alone(
    project: Path, result: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, out = result
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(torch.nn.Module, "__call__", None)
    paths = paths_of(project, tmp_path)
    paths.metrics.unlink()
    evaluate(PARAMS, encoders_of(project), paths)
    assert read(paths.metrics) == expected


def test_no_canvas_is_encoded_twice(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    encode = features.dense_features

    def counted(embedder: Embedder, canvas: np.ndarray, axis: LocationAxis) -> np.ndarray:
        seen.append(canvas.tobytes())
        return encode(embedder, canvas, axis)

    monkeypatch.setattr(features, "dense_features", counted)
    run(project, tmp_path, names=("trained",))
    assert len(seen) == len(set(seen)) == 6 + 4, "of correspondence, colours and symmetry; of the last also mirrored"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "cohort.json: .* or others; `python -m ace cohort`"),
        (with_properties(symmetry=None), "answers.json: has asked .* measure@trained` measures it again"),
    ],
)
def test_answers_to_other_questions_are_refused(
    change: dict[str, Any], message: str, project: Path, result: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    _, out = result
    params = EvaluateParams.from_params(EVALUATE | change, "evaluate")
    paths = replace(paths_of(project, out), metrics=tmp_path / "p.json", evidence=tmp_path / "evidence")
    with pytest.raises(ConfigError, match=message):
        evaluate(params, encoders_of(project), paths)
    assert not list(tmp_path.iterdir())


def test_an_encoder_that_was_not_measured_is_named(
    project: Path, result: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    paths = replace(paths_of(project, result[1]), metrics=tmp_path / "p.json", evidence=tmp_path / "evidence")
    with pytest.raises(ConfigError, match=r"answers/student/answers.json: not found; `dvc repro measure@student`"):
        evaluate(PARAMS, encoders_of(project, names=("trained", "student")), paths)


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_cohort_has_one_image_of_each_patient_of_its_split_and_of_no_other(
    split: MeasuredSplit, project: Path
) -> None:
    root = project / "data/shards" / BATCH
    index, reader = ShardIndex.open(root), ShardReader(ShardIndex.open(root))
    rows = index.select(split)
    patient_of = {reader.read(int(row)).key: index.rows["patient"][row].decode() for row in rows}
    cohort = read_cohort(ShardIndex.open(root), split, max_patients=1000, seed=0)
    assert cohort.split == split
    found = [patient_of[subject.key] for subject in cohort.subjects]
    assert len(set(found)) == len(found) == len(set(patient_of.values()))
    assert len(patient_of) > len(found)


def test_what_a_project_excludes_is_neither_measured_nor_reported(project: Path, tmp_path: Path) -> None:
    paths = replace(paths_of(project, tmp_path), project=tmp_path)
    choose_cohort(PARAMS, encoders_of(project), paths)
    key = json.loads(paths.cohort.read_text())["keys"][0]
    index = ShardIndex.open(project / "data/shards" / BATCH)
    patient = index.rows["patient"][index.rows["key"] == key.encode()][0].decode()
    for path, text in (
        (list_path(BATCH, tmp_path), f"patient {patient}\n"),
        (exclusion_path(BATCH, tmp_path), format_exclusion(BATCH, parse_list(f"patient {patient}\n"))),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    choose_cohort(PARAMS, encoders_of(project), paths)
    assert key not in json.loads(paths.cohort.read_text())["keys"]
    (tmp_path / "data/shards").mkdir(parents=True)
    (tmp_path / "data/shards" / BATCH).symlink_to(project / "data/shards" / BATCH)
    (tmp_path / "data/evidence").mkdir()
    (tmp_path / "data/evidence/protocol.json").write_text(json.dumps({"batch": BATCH}))
    shown = ReportInputs(tmp_path).measured
    assert key not in shown.keys(shown.select("test"))


def test_a_smaller_cohort_is_the_beginning_of_a_larger_one(project: Path) -> None:
    root = project / "data/shards" / BATCH
    index = ShardIndex.open(root)
    few, many = read_cohort(index, "test", 5, seed=0).subjects, read_cohort(index, "test", 9, seed=0).subjects
    assert [subject.key for subject in few] == [subject.key for subject in many[:5]]
    other = read_cohort(index, "test", 5, seed=1).subjects
    assert [subject.key for subject in few] != [subject.key for subject in other]


def test_on_the_validation_split_only_its_patients_are_measured(
    project: Path, on_validation: tuple[dict[str, Any], Path]
) -> None:
    figures, out = on_validation
    index = ShardIndex.open(project / "data/shards" / BATCH)
    num_patients = len(np.unique(index.rows["patient"][index.select("val")]))
    assert {figures["trained"][name]["n"] for name in ("compositionality", *REMOVAL)} == {num_patients}
    protocol, independence = read(out / "evidence/protocol.json"), read(out / "evidence/independence.json")
    assert protocol["split"] == "val"
    assert independence["trained"]["num_val_patients"] == num_patients
    summary = summary_table(out / "properties.json", out / "evidence/protocol.json")
    assert summary.splitlines()[-1] == f"measured on {num_patients} val patients of {BATCH}"


def test_a_model_that_was_trained_on_validation_patients_is_not_measured_on_them(project: Path, tmp_path: Path) -> None:
    index = ShardIndex.open(project / "data/shards" / BATCH)
    model = tmp_path / "model"
    shutil.copytree(project / "models/ace", model)
    write_lineage(model, {BATCH: index})
    row = index.rows[index.select("val")][0]
    with (model / TRAINING_IMAGES).open("a") as file:
        file.write(f"{BATCH},{row['key'].decode()},{row['patient'].decode()}\n")
    params = EvaluateParams.from_params(ON_VALIDATION, "evaluate")
    with pytest.raises(ContaminationError, match=r"1 of \d+ val patients of phantom-b000 are among the model's"):
        run(project, tmp_path / "out", params, model=model)
    # On test patients it is, whose labels' probe only takes its penalty from validation patients.
    sections = {"composition": EVALUATE["properties"]["composition"], "labels": {}}
    params = EvaluateParams.from_params(EVALUATE | {"properties": sections}, "evaluate")
    run(project, tmp_path / "out", params, model=model, names=TWO)


def test_too_few_validation_patients_are_told_as_such(project: Path, tmp_path: Path) -> None:
    params = EvaluateParams.from_params(EVALUATE | {"split": "val"}, "evaluate")
    with pytest.raises(ConfigError, match=r"\d val patients, but .*decomposition needs 8 .*give the val split"):
        run(project, tmp_path, params)


def test_fewer_test_patients_than_the_batch_is_a_configuration_error(project: Path, tmp_path: Path) -> None:
    values = with_properties(decomposition=EVALUATE["properties"]["decomposition"] | {"num_candidates": 60}) | {
        "max_patients": 64
    }
    with pytest.raises(ConfigError, match=r"\d+ test patients, but .*decomposition needs 60"):
        run(project, tmp_path, EvaluateParams.from_params(values, "evaluate"))
    assert not list(tmp_path.iterdir())


def test_a_model_of_another_grid_is_refused(project: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in (project / "models/ace").iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    config = json.loads((model / "config.json").read_text())
    config["params"]["grid"]["n"] = 10
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"\(10, 8, 4\).*has \(8, 8, 4\)"):
        run(project, tmp_path / "out", model=model)


def test_a_model_of_images_framed_otherwise_is_refused(project: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(project / "models/ace", model)
    config = json.loads((model / "config.json").read_text())
    config["params"]["grid"]["trim_level"] = 25
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"grid.trim_level 25, but .* was built with null"):
        run(project, tmp_path / "out", model=model)


def test_a_batch_that_the_model_was_not_trained_with_is_measured_with_its_own_normalisation(
    project: Path, result: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(project / "models/ace", model)
    config = json.loads((model / "config.json").read_text())
    mix = config["params"]["batches"].pop(BATCH)["mix"]
    config["params"]["batches"]["elsewhere"] = {"mix": {"weight": 1.0, "mean": 0.1, "std": 0.9}}
    (model / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=rf"'{BATCH}' is unknown to this model; .*\['elsewhere'\]. Register it"):
        run(project, out, model=model)
    own = MeasuredParams.from_params({key: mix[key] for key in ("mean", "std")}, "own")
    # Of crops, and of whole canvases.
    sections = {name: EVALUATE["properties"][name] for name in ("composition", "correspondence")}
    params = EvaluateParams.from_params(EVALUATE | {"properties": sections}, "evaluate")
    found = run(project, out, params, model=model, measured=own)
    for name in ENCODERS:
        assert found[name].keys() >= {"compositionality", "correspondence_px_at_1024"}
        assert found[name].items() <= result[0][name].items()
    dark = MeasuredParams(mean=(0.0,), std=(1.0,))
    other = run(project, out, params, model=model, names=("trained",), measured=dark)
    assert other["trained"] != found["trained"]


def test_without_landmarks_correspondence_is_null_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACE_SCRATCH", str(tmp_path / "scratch"))
    project = write_project(tmp_path / "project", has_landmarks=False)
    params = EvaluateParams.from_params(with_properties(composition=None, interpolation=None), "evaluate")
    figures = run(project, tmp_path, params, names=TWO)
    for encoder in ("trained", "untrained", "gain"):
        figure = figures[encoder]["correspondence_px_at_1024"]
        assert figure["value"] is None
        assert "landmarks" in figure["reason"]
        for other in ("retrieval_top1", "symmetry"):
            assert "landmark" in figures[encoder][other]["reason"]
    assert "landmarks" in summary_table(tmp_path / "properties.json")
    assert "trained_colours" in np.load(tmp_path / "evidence" / "colours.npz")
    probed = {label for label in figures["labels"] if "trained" in figures["labels"][label]}
    assert probed
    assert set(figures["labels"]) == probed, "sections that a property adds are its own"
    assert "baselines" not in figures


def test_the_summary_names_each_property_with_its_chance(result: tuple[dict[str, Any], Path]) -> None:
    figures, out = result
    lines = summary_table(out / "properties.json").splitlines()
    for name in ("compositionality", "decompositionality", "correspondence"):
        assert any(line.startswith(name) for line in lines)
    line = next(line for line in lines if line.startswith("decompositionality"))
    for encoder in ENCODERS:
        assert f"{encoder} [interval]" in lines[0]
        assert f"{figures[encoder]['decompositionality']['value']:.1%}" in line
    assert "12.5%" in line
    assert len([line for line in lines if "set to" in line]) == len(FILLS)
    assert next(line for line in lines if line.startswith("removal")).endswith("]")


def test_a_published_encoder_of_another_token_grid_is_refused(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models/imagenet"
    folder.parent.mkdir()
    write_imported(folder, t=2)
    encoders = parse_encoders({"imagenet": {"model": str(folder), "network": "teacher"}}, "params.yaml")
    with pytest.raises(ConfigError, match="2×2 tokens, and crops of phantom-b000 have 4×4 cells"):
        evaluate_at_once(PARAMS, encoders, paths_of(project, tmp_path / "out"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"labels": "teacher"}, "'labels' is a section of the metrics already"),
        ({"untrained": "untrained"}, "first encoder, 'untrained', is untrained"),
        ({"Trained": "teacher"}, "should match pattern"),
        ({}, "at least 1 item"),
    ],
)
def test_encoders_that_cannot_be_rows_are_refused(names: dict[str, str], message: str) -> None:
    values = {name: {"model": "models/ace", "network": network} for name, network in names.items()}
    with pytest.raises(ConfigError, match=message):
        parse_encoders(values, "params.yaml")


def test_a_bound_accepts_its_ends_and_needs_one_side() -> None:
    assert Bound(min=0.0, max=1.0).accepts(1.0)
    assert not Bound(min=0.0).accepts(-1e-9)
    assert Bound(max=3.0).accepts(-100.0)
    with pytest.raises(ConfigError, match="min, a max, or both"):
        Bound.from_params({}, "checks")
    with pytest.raises(ConfigError, match=r"min 2\.0 is above max 1\.0"):
        Bound.from_params({"min": 2.0, "max": 1.0}, "checks")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_patients": 7}, "max_patients 7 is below what properties.decomposition needs: 8"),
        (
            with_properties(composition=EVALUATE["properties"]["composition"] | {"min_side": 0.9}),
            "properties.composition: min_side 0.9 is above max_side 0.7",
        ),
        (with_properties(compositoin={}), "properties.compositoin: unknown key; did you mean 'composition'"),
        ({"properties": {}}, "properties is empty"),
    ],
)
def test_contradicting_params_name_both_numbers(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluateParams.from_params(EVALUATE | change, "evaluate")
