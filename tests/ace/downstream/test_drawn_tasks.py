"""Segmentation and landmarks as tasks: what is drawn moves with its image, and planted answers score as they should."""

import weakref

import numpy as np
import pytest

from ace.downstream import landmarks
from ace.downstream.parts import Part, divide
from ace.downstream.table import tabulate
from ace.downstream.views import View, center_view
from ace.drawing.outlines import PREDICTION, TRUTH
from ace.protocol.intervals import estimate
from shards.core.errors import ConfigError
from shards.reading.reader import Sample, ShardIndex, ShardReader
from tests.ace.downstream.drawn import build, task


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    folder = tmp_path_factory.mktemp("places")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_SCRATCH", str(folder / "scratch"))
        return build(folder)


@pytest.fixture
def part(index: ShardIndex) -> Part:
    return divide(index, task("segmentation").params).test


def test_the_middle_of_a_whole_image_is_its_masks_and_its_landmarks(part: Part) -> None:
    sample = ShardReader(part.index).read(int(part.rows[0]))
    truth = task("segmentation").truth(part, is_training=False)
    heart = np.unpackbits(truth["masks"][0, 0], axis=-1).astype(bool)
    assert np.array_equal(heart, sample.masks()["heart"])
    places = task("landmarks").truth(part, is_training=False)["points"][0]
    np.testing.assert_allclose(places[0] * 48, sample.landmarks["carina"])
    np.testing.assert_allclose(places[1] * 48, sample.landmarks["apex_left"])


def test_targets_move_as_the_view_says_and_unknown_structures_are_marked(index: ShardIndex) -> None:
    reader = ShardReader(index)
    samples = [reader.read(int(row)) for row in index.select("all")]
    rng = np.random.default_rng(0)
    mirrored = View(row=0, col=0, side=1, is_mirrored=True)
    for sample in samples[:6]:
        target = task("segmentation").target(sample, mirrored, rng)
        masks = sample.masks()
        assert target.known.tolist() == [True, "nodule" in masks]
        assert np.array_equal(target.values[0], masks["heart"][:, ::-1])
        target = task("landmarks").target(sample, mirrored, rng)
        row, col = sample.landmarks["carina"]
        np.testing.assert_allclose(target.values[0], [row / 48, 1 - col / 48], rtol=1e-6)
        assert target.known.all()


def test_the_truth_scores_one_nothing_scores_none_and_the_mean_shape_scores_chance(part: Part) -> None:
    own = task("segmentation")
    truth = own.truth(part, is_training=False)
    right = own.scores(truth, {"masks": truth["masks"]}, part)
    assert estimate(right["dice"].measure, part.num_patients) == 1
    assert estimate(right["iou_over_set/nodule"].measure, part.num_patients) == 1
    assert estimate(right["hd95_mm/heart"].measure, part.num_patients) == 0
    assert own.validation_score(truth, {"masks": truth["masks"]}) == 1
    nothing = own.scores(truth, {"masks": np.zeros_like(truth["masks"])}, part)
    assert estimate(nothing["dice"].measure, part.num_patients) == 0
    assert np.isnan(estimate(nothing["hd95_px_at_1024"].measure, part.num_patients))
    hearts = np.unpackbits(truth["masks"], axis=-1)[:, 0]
    shape = np.packbits((2 * hearts.sum(0) >= len(hearts)), axis=-1)
    guess = {"masks": np.broadcast_to(shape, truth["masks"].shape).copy()}
    score = own.scores(truth, guess, part)["dice/heart"]
    assert score.chance is not None
    assert 0.5 < score.chance < 1
    assert estimate(score.measure, part.num_patients) == pytest.approx(score.chance)


def test_a_shift_has_its_distance_in_pixels_of_1024_and_in_millimetres(part: Part) -> None:
    own = task("segmentation", structures=["heart"])
    truth = own.truth(part, is_training=False)
    hearts = np.unpackbits(truth["masks"], axis=-1)
    answers = {"masks": np.packbits(np.roll(hearts, 3, axis=2), axis=-1)}
    found = own.scores(truth, answers, part)
    assert estimate(found["hd95_px_at_1024"].measure, part.num_patients) == pytest.approx(3 * 1024 / 48)
    # Detector spacings of the drawn phantom are 1.2 mm, and 1.3 mm in the second image of a patient.
    spacing = truth["pixel_mm"][:, 0]
    assert set(np.round(spacing, 6)) <= {1.2, 1.3}
    assert estimate(found["hd95_mm"].measure, part.num_patients) == pytest.approx(3 * spacing.mean())


def test_landmarks_at_the_truth_are_found_and_their_mean_positions_score_chance(part: Part) -> None:
    own = task("landmarks", success_px=20.0)
    truth = own.truth(part, is_training=False)
    right = own.scores(truth, truth, part)
    assert estimate(right["found"].measure, part.num_patients) == 1
    assert estimate(right["error_px_at_1024/carina"].measure, part.num_patients) == 0
    assert own.validation_score(truth, truth) == 0
    guess = {"points": np.broadcast_to(truth["points"].mean(0), truth["points"].shape)}
    for name in ("found", "error_px_at_1024"):
        score = own.scores(truth, guess, part)[name]
        assert estimate(score.measure, part.num_patients) == pytest.approx(score.chance)
    off = {"points": truth["points"] + np.array([0.03, 0.04])}
    found = own.scores(truth, off, part)
    assert estimate(found["error_px_at_1024"].measure, part.num_patients) == pytest.approx(0.05 * 1024)
    assert estimate(found["error_mm"].measure, part.num_patients) == pytest.approx(0.05 * truth["side_mm"].mean())
    assert estimate(found["found"].measure, part.num_patients) == 0


@pytest.mark.parametrize(("kind", "key"), [("segmentation", "masks"), ("landmarks", "points")])
def test_swapped_answers_swap_the_table_and_every_figure_has_an_interval(part: Part, kind: str, key: str) -> None:
    own = task(kind)
    truth = own.truth(part, is_training=False)
    worse = {key: np.roll(truth[key], 1, axis=2) if kind == "segmentation" else truth[key] + 0.1}
    uses = {("good", "full", "100pct"): [truth], ("bad", "full", "100pct"): [worse]}
    table = tabulate(own, part, truth, uses)
    assert table["gain_over_bad"]["full"]["100pct"][own.headline]["low"] > 0
    swapped = tabulate(own, part, truth, dict(reversed(uses.items())))
    assert swapped["gain_over_good"]["full"]["100pct"][own.headline]["high"] < 0
    for name, figure in table["bad"]["full"]["100pct"].items():
        assert figure["low"] <= figure["value"] <= figure["high"], name


def test_pictures_show_truth_and_answer_over_the_image(part: Part) -> None:
    canvas = ShardReader(part.index).read(int(part.rows[0])).image
    for kind, key in (("segmentation", "masks"), ("landmarks", "points")):
        own = task(kind)
        truth = own.truth(part, is_training=False)
        answers = {key: np.roll(truth[key], 4, axis=2) if kind == "segmentation" else truth[key] + 0.1}
        picture = own.shown_answer(truth, answers, 0, canvas)["overlay"]
        for colour in (TRUTH, PREDICTION):
            assert (picture == colour).all(-1).any()
        losses = own.losses(truth, answers)
        assert losses.shape == (len(part),)
        assert (losses > own.losses(truth, truth)).all()


def test_names_that_the_set_does_not_have_are_refused_with_those_it_has(part: Part) -> None:
    with pytest.raises(ConfigError, match=r"of lung the images of phantom-b000 .*they have heart, nodule"):
        task("segmentation", structures=["lung"]).truth(part, is_training=False)
    with pytest.raises(ConfigError, match=r"of hilum the images of phantom-b000 .*they have apex_left, carina"):
        task("landmarks", landmarks=["hilum"]).truth(part, is_training=False)


def test_what_training_never_shows_is_refused(part: Part) -> None:
    own = task("segmentation")
    truth = dict(own.truth(part, is_training=False))
    own.check({"train": truth})
    truth["masks"] = truth["masks"].copy()
    truth["masks"][:, 1] = 0
    with pytest.raises(ConfigError, match="no training image shows nodule"):
        own.check({"train": truth})
    places = task("landmarks")
    points = places.truth(part, is_training=False)["points"].copy()
    points[:, 0] = np.nan
    with pytest.raises(ConfigError, match="no training image has carina"):
        places.check({"train": {"points": points}})


def test_few_shots_are_so_many_images_of_those_that_know_something(part: Part) -> None:
    for kind in ("segmentation", "landmarks"):
        own = task(kind)
        assert own.classes(own.truth(part, is_training=False)).tolist() == [[True]] * len(part)
    assert center_view(1.0) == View(row=0, col=0, side=1.0)


def test_images_do_not_stay_in_memory_while_landmarks_are_read(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref[Sample]] = []
    most = 0

    class Counting(ShardReader):
        def read(self, row: int) -> Sample:
            nonlocal most
            sample = super().read(row)
            seen.append(weakref.ref(sample))
            most = max(most, sum(own() is not None for own in seen))
            return sample

    monkeypatch.setattr(landmarks, "ShardReader", Counting)
    task("landmarks").truth(part, is_training=False)
    assert len(part) > 2
    assert most <= 2, "the one that is read, and the one before it"
