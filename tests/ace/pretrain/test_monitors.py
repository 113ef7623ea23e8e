"""Monitors tell health from collapse, and the watch says so once an occurrence, also in a resumed run."""

import csv
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ace.pretrain.monitor_params import CollapseParams
from ace.pretrain.monitors import (
    CollapseWatch,
    center_norm,
    effective_rank,
    feature_std,
    mean_entropy,
    rank_fraction,
)
from shards.core.errors import ConfigError
from tests.ace.pretrain.conftest import ROOT, demo_values

UNIFORM = math.log(64)


def collapse_params(**changes: Any) -> CollapseParams:
    values = {
        "min_feature_std": 0.1,
        "min_rank_fraction": 0.1,
        "min_entropy_fraction": 0.05,
        "max_entropy_fraction": 0.99,
        "patience_rows": 3,
    }
    return CollapseParams.from_params({**values, **changes}, "test: collapse")


def watch(**changes: Any) -> CollapseWatch:
    return CollapseWatch(collapse_params(**changes), out_dim=64)


def row(step: int, **changes: float) -> dict[str, float]:
    return {"step": step, "feature_std": 0.5, "rank_fraction": 0.4, "teacher_entropy": 2.0, **changes}


def test_isotropic_features_have_deviation_and_rank_near_their_greatest() -> None:
    features = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    assert float(feature_std(features)) == pytest.approx(1.0, abs=0.05)
    assert float(effective_rank(features)) == pytest.approx(16.0, abs=0.2)


def test_equal_features_have_no_deviation_and_features_on_a_line_have_rank_one() -> None:
    direction = torch.linspace(-1, 1, 16)
    assert float(feature_std(direction.expand(8, 16))) == pytest.approx(0.0, abs=1e-6)
    assert float(effective_rank(torch.randn(8, 1) * direction)) == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_have_no_rank_and_do_not_end_the_run(bad: float) -> None:
    features = torch.randn(8, 4)
    features[2, 1] = bad
    assert effective_rank(features).isnan()
    assert rank_fraction(effective_rank(features), features).isnan()


def test_the_rank_is_at_most_that_of_centred_features() -> None:
    features = torch.randn(6, 100, generator=torch.Generator().manual_seed(0))
    assert 4.5 < float(effective_rank(features)) <= 5.0 + 1e-4


def test_the_fraction_of_the_rank_is_of_what_the_crops_and_the_width_allow() -> None:
    few, wide = torch.randn(6, 100), torch.randn(200, 4)
    assert float(rank_fraction(effective_rank(few), few)) == pytest.approx(float(effective_rank(few)) / 5)
    assert float(rank_fraction(effective_rank(wide), wide)) == pytest.approx(float(effective_rank(wide)) / 4)


def test_entropy_is_log_of_the_outputs_when_uniform_and_zero_when_certain() -> None:
    assert float(mean_entropy(torch.zeros(3, 64))) == pytest.approx(UNIFORM)
    assert float(mean_entropy(1000 * torch.eye(3, 64))) == pytest.approx(0.0, abs=1e-5)


def test_the_length_of_the_centre_is_euclidean() -> None:
    assert float(center_norm(torch.tensor([3.0, 0.0, -4.0]))) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"feature_std": 0.02}, ["feature_std is 0.02, below 0.1", "complete collapse", "black, inverted"]),
        ({"rank_fraction": 0.05}, ["rank_fraction is 0.05, below 0.1 (min_rank_fraction 0.1)", "dimensional"]),
        ({"teacher_entropy": 0.1}, ["teacher_entropy is 0.1, below 0.2079", "of log(64)", "Raise global_loss.teacher"]),
        ({"teacher_entropy": 4.15}, ["above 4.117 (max_entropy_fraction 0.99", "Lower global_loss.teacher_temp"]),
    ],
)
def test_a_warning_says_what_was_found_the_bound_its_meaning_and_a_remedy(
    changes: dict[str, float], expected: list[str]
) -> None:
    watching = watch()
    assert [watching.check(row(step, **changes)) for step in range(2)] == [[], []]
    (text,) = watching.check(row(2, **changes))
    assert all(part in text for part in ("step 2:", *expected)), text


def test_an_occurrence_is_said_once_and_again_after_a_recovery() -> None:
    watching = watch()
    values = [0.5, 0.01, 0.01, 0.5, *[0.01] * 10, 0.5, *[0.01] * 4]
    said = [step for step, value in enumerate(values) if watching.check(row(step, feature_std=value))]
    assert said == [6, 17]


def test_a_healthy_row_and_one_without_monitors_or_with_nan_say_nothing() -> None:
    watching = watch(patience_rows=1)
    assert watching.check(row(0)) == watching.check({"step": 1}) == []
    assert watching.check(row(2, feature_std=math.nan, teacher_entropy=math.nan)) == []


def test_without_a_global_head_only_the_features_are_watched() -> None:
    watching = CollapseWatch(collapse_params(patience_rows=1), out_dim=None)
    assert watching.check(row(0, teacher_entropy=0.0)) == []
    assert len(watching.check(row(1, feature_std=0.0, rank_fraction=0.02))) == 2


@given(st.lists(st.sampled_from([0.5, 0.01]), max_size=30), st.integers(0, 30))
def test_a_resumed_watch_says_what_an_uninterrupted_one_would_have(values: list[float], resumed: int) -> None:
    rows = [row(step, feature_std=value) for step, value in enumerate(values)]
    whole, second = watch(), watch()
    said = [whole.check(item) for item in rows]
    for item in rows[:resumed]:
        second.check(item)
    assert [second.check(item) for item in rows[resumed:]] == said[resumed:]


def test_the_demos_recorded_training_gives_no_warning() -> None:
    rows: dict[int, dict[str, float]] = {}
    for name in ("feature_std", "effective_rank", "teacher_entropy"):
        with (ROOT / f"metrics/pretrain/plots/metrics/{name}.tsv").open(encoding="utf-8") as file:
            for item in csv.DictReader(file, delimiter="\t"):
                rows.setdefault(int(item["step"]), {"step": float(item["step"])})[name] = float(item[name])
    pretrain = demo_values("pretrain")
    most = min(2 * pretrain["batch_size"] - 1, pretrain["backbone"]["model_args"]["dims"][-1])
    for item in rows.values():
        item["rank_fraction"] = item["effective_rank"] / most
    params = CollapseParams.from_params(pretrain["collapse"], "demo: collapse")

    def warnings(entropy_factor: float) -> list[str]:
        watching = CollapseWatch(params, out_dim=pretrain["global_head"]["out_dim"])
        changed = [
            item | {"teacher_entropy": entropy_factor * item["teacher_entropy"]} for _, item in sorted(rows.items())
        ]
        return [text for item in changed for text in watching.check(item)]

    assert len(rows) > 100
    assert warnings(1.0) == []
    assert any("teacher_entropy is" in text for text in warnings(0.05))


def test_entropy_bounds_out_of_order_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"min_entropy_fraction 0.9 is not below max_entropy_fraction 0.5"):
        collapse_params(min_entropy_fraction=0.9, max_entropy_fraction=0.5)
