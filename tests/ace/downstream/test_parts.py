"""Who trains, validates and is measured: no patient twice, and smaller amounts within larger ones."""

from itertools import pairwise

import numpy as np
import pytest

from ace.downstream.parts import Amount, amounts_of, divide, draw
from shards.core.errors import ConfigError
from shards.reading.reader import ShardIndex
from tests.ace.downstream.labelled import task


@pytest.mark.parametrize("val_share", [0.0, 0.3])
def test_no_patient_is_in_two_parts_and_every_image_of_the_splits_is_in_one(
    index: ShardIndex, val_share: float
) -> None:
    parts = divide(index, task(val_share=val_share).params)
    patients = [set(part.pseudonyms) for _, part in parts]
    assert sum(map(len, patients)) == len(set.union(*patients))
    rows = np.sort(np.concatenate([parts.train.rows, parts.val.rows]))
    expected = (
        index.select("train") if val_share else np.sort(np.concatenate([index.select("train"), index.select("val")]))
    )
    assert np.array_equal(rows, expected)
    assert np.array_equal(parts.test.rows, index.select("test"))
    if val_share:
        assert parts.val.num_patients == round(0.3 * (parts.train.num_patients + parts.val.num_patients))


def test_validation_patients_stay_when_others_come(index: ShardIndex) -> None:
    parts = divide(index, task(val_share=0.3).params)
    missing = sorted(parts.train.pseudonyms)[0]
    fewer = divide(index.without_patients({missing}), task(val_share=0.3).params)
    assert set(fewer.val.pseudonyms) <= set(parts.val.pseudonyms)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_smaller_shares_are_within_larger_ones_and_have_all_images_of_their_patients(
    index: ShardIndex, seed: int
) -> None:
    train = divide(index, task().params).train
    classes = np.ones((len(train), 1), bool)
    drawn = [draw(train, classes, Amount(fraction=share), seed) for share in (0.1, 0.25, 0.5, 1.0)]
    for smaller, larger in pairwise(drawn):
        assert set(smaller.keys) < set(larger.keys)
    for share, part in zip((0.1, 0.25, 0.5, 1.0), drawn, strict=True):
        assert part.num_patients == round(share * train.num_patients)
        assert part.keys == train.of_patients(set(part.pseudonyms)).keys
    assert drawn[-1].keys == train.keys


def test_another_seed_draws_other_patients(index: ShardIndex) -> None:
    train = divide(index, task().params).train
    classes = np.ones((len(train), 1), bool)
    assert draw(train, classes, Amount(fraction=0.5), 0).keys != draw(train, classes, Amount(fraction=0.5), 1).keys


def test_few_shots_are_so_many_patients_of_each_class_and_nested(index: ShardIndex) -> None:
    own = task()
    train = divide(index, own.params).train
    classes = own.classes(own.truth(train, is_training=True))
    few, more = (draw(train, classes, Amount(shots=number), 0) for number in (3, 6))
    assert set(few.keys) < set(more.keys)
    for number, part in ((3, few), (6, more)):
        counts = own.classes(own.truth(part, is_training=False)).sum(0)
        assert counts.tolist() == [number, number], "the label, and none"
        assert len(set(part.pseudonyms)) == len(part), "each image is of another patient"


def test_more_shots_than_patients_are_refused(index: ShardIndex) -> None:
    own = task()
    train = divide(index, own.params).train
    with pytest.raises(ConfigError, match=r"class 1 of 2 .* training patients, and 60 images of it"):
        draw(train, own.classes(own.truth(train, is_training=True)), Amount(shots=60), 0)


def test_a_part_without_images_is_refused(index: ShardIndex) -> None:
    with pytest.raises(ConfigError, match="no images to take as 'test'"):
        divide(index.without_patients(set(divide(index, task().params).test.pseudonyms)), task().params)


def test_amounts_have_names_that_folders_can_have() -> None:
    names = [amount.name for amount in amounts_of(task(fractions=[0.1, 1.0, 0.025], shots=[5, 10]).params)]
    assert names == ["100pct", "10pct", "2_5pct", "10shot", "5shot"]
