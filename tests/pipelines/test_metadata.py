import json
import math
from pathlib import Path

import pytest
from dagster import AssetKey, MetadataValue
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.graph import Out, load_graph
from pipelines.lock import RecordedOut
from pipelines.metadata import flat_numbers, number_metadata, out_metadata, read_checks
from shards.core.errors import ConfigError
from tests.pipelines.toy import edit

RECORDED = RecordedOut(md5="aa.dir", num_bytes=2_500_000, num_files=4)
NAMES = st.text("abc", min_size=1, max_size=3)


@given(
    st.recursive(st.floats() | st.integers() | st.text() | st.booleans(), lambda deeper: st.dictionaries(NAMES, deeper))
)
def test_every_numeric_leaf_is_found_under_its_dotted_path(tree: object) -> None:
    for path, value in flat_numbers({"root": tree}).items():
        leaf: object = {"root": tree}
        for name in path.split("."):
            assert isinstance(leaf, dict)
            leaf = leaf[name]
        assert leaf is value
    assert len(flat_numbers({"root": tree})) == _count_numbers(tree)


def _count_numbers(tree: object) -> int:
    if isinstance(tree, dict):
        return sum(_count_numbers(value) for value in tree.values())
    return type(tree) in (int, float)


def test_flat_metrics_are_listed_one_below_the_other(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("loss: 1e-4\nstep: 3\n")
    shown = out_metadata(tmp_path, Out("m.yaml", "metric"), RECORDED)
    assert shown["table"].value == "|  | value |\n| --- | --- |\n| loss | 0.0001 |\n| step | 3 |"


def test_what_json_cannot_carry_is_left_out() -> None:
    assert list(number_metadata({"a": math.nan, "b": -math.inf, "c": 1})) == ["c"]


def test_a_metrics_file_becomes_numbers_and_a_table(tmp_path: Path) -> None:
    figures = {"trained": {"value": 0.5, "low": 0.25}, "untrained": {"value": 0.125}, "steps": 100}
    (tmp_path / "m.json").write_text(json.dumps(figures))
    shown = out_metadata(tmp_path, Out("m.json", "metric"), RECORDED)
    assert [shown[name].value for name in ("trained.value", "untrained.value", "steps")] == [0.5, 0.125, 100]
    assert "trained.low" not in shown
    assert shown["size_mb"].value == 2.5
    assert shown["num_files"].value == 4
    assert shown["table"].value == (
        "|  | value | low | steps |\n| --- | --- | --- | --- |\n"
        "| trained | 0.5 | 0.25 |  |\n| untrained | 0.125 |  |  |\n|  |  |  | 100 |"
    )


@pytest.mark.parametrize(
    ("path", "text"), [("plots/loss.tsv", "step\tloss\n0\t3\n1\tnan\n"), ("p.csv", "loss,who\n3,me\n1,you\n")]
)
def test_plots_are_summed_up_column_by_column(tmp_path: Path, path: str, text: str) -> None:
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(text)
    table = out_metadata(tmp_path, Out(path.split("/")[0], "plot"), RECORDED)["series"].value
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in str(table).splitlines()[2:]]
    assert [row[0] for row in rows] == ["loss: loss" if "tsv" in path else "p: loss"]
    assert rows[-1][1:5] == ["▁" if "tsv" in path else "█▁", "2", "3", "nan" if "tsv" in path else "1"]


@pytest.mark.parametrize("values", [("nan", "2", "5"), ("2", "nan", "5"), ("2", "5", "inf"), ("-inf", "5", "2")])
def test_the_range_of_a_series_is_that_of_its_finite_values_wherever_the_others_stand(
    tmp_path: Path, values: tuple[str, ...]
) -> None:
    (tmp_path / "log.tsv").write_text(
        "\n".join(["step\tloss", *(f"{step}\t{value}" for step, value in enumerate(values))])
    )
    table = out_metadata(tmp_path, Out("log.tsv", "plot"), RECORDED)["series"].value
    *_, first, last, low, high, _ = str(table).splitlines()[-1].split("|")
    assert [first.strip(), last.strip(), low.strip(), high.strip()] == [values[0], values[-1], "2", "5"]


def test_the_curve_of_a_plot_rises_and_falls_as_its_series_does(tmp_path: Path) -> None:
    rises, parabola = range(320), [(2 * number - 319) ** 2 for number in range(320)]
    lines = [f"{step}\t{up}\t{bowl}\t5\tinf" for step, (up, bowl) in enumerate(zip(rises, parabola, strict=True))]
    (tmp_path / "log.tsv").write_text("\n".join(["step\tup\tbowl\tflat\tgone", *lines]))
    table = out_metadata(tmp_path, Out("log.tsv", "plot"), RECORDED)["series"].value
    curves = {row.split("|")[1].strip(): row.split("|")[2].strip() for row in str(table).splitlines()[2:]}
    assert list(curves["log: up"]) == sorted(curves["log: up"])
    assert set(curves["log: up"]) == set("▁▂▃▄▅▆▇█")
    half = len(curves["log: bowl"]) // 2
    assert curves["log: bowl"][0] == curves["log: bowl"][-1] == "█"
    assert list(curves["log: bowl"][:half]) == sorted(curves["log: bowl"][half:], reverse=True)
    assert set(curves["log: flat"]) == {"▁"}
    assert curves["log: gone"] == ""


def test_pictures_are_named_by_their_paths_and_their_pixels_stay_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in "abc":
        Image.new("L", (2000, 1000)).save(tmp_path / "data" / f"{name}.png")
    shown = out_metadata(tmp_path, Out("data", "data"), RECORDED)
    pictures = {name: value.value for name, value in shown.items() if name.endswith(".png")}
    assert pictures == {name: str(tmp_path / "data" / name) for name in ("a.png", "b.png")}
    assert not [value for value in shown.values() if "base64" in str(value.value)]


def test_a_page_and_a_model_card_are_linked(tmp_path: Path) -> None:
    (tmp_path / "a report.html").write_text("<p>")
    shown = out_metadata(tmp_path, Out("a report.html", "data"), RECORDED)
    assert shown["page"] == MetadataValue.url(f"file://{tmp_path}/a%20report.html")
    (tmp_path / "model").mkdir()
    assert "card" not in out_metadata(tmp_path, Out("model", "data"), RECORDED)
    (tmp_path / "model/README.md").write_text("# a model")
    shown = out_metadata(tmp_path, Out("model", "data"), RECORDED)
    assert shown["card"] == MetadataValue.path(tmp_path / "model/README.md")
    assert "page" not in shown


def test_an_out_that_is_not_in_the_work_tree_still_has_its_record(tmp_path: Path) -> None:
    for kind in ("data", "metric", "plot"):
        assert out_metadata(tmp_path, Out("gone", kind), RECORDED)["md5"].value == "aa.dir"


def test_checks_hold_metrics_against_thresholds(toy: Path) -> None:
    results = {check.metric: check.evaluation(toy) for check in read_checks(toy, load_graph(toy))}
    assert {metric: result.passed for metric, result in results.items()} == {
        "trained.accuracy": True,
        "trained.loss": True,
        "untrained.accuracy": False,
    }
    loss = results["trained.loss"]
    assert (loss.asset_key, loss.check_name) == (AssetKey(["metrics", "train.json"]), "trained_loss")
    assert loss.description == "trained.loss = 1.25, expected min 0.5, max 2.0"


def test_a_metric_that_is_missing_fails_its_check(toy: Path) -> None:
    edit(toy / "params.yaml", "untrained.accuracy", "untrained.acuracy")
    check = read_checks(toy, load_graph(toy))[-1]
    assert not check.evaluation(toy).passed
    assert "acuracy = None" in str(check.evaluation(toy).description)


def test_a_metric_that_could_not_be_measured_passes_and_says_why(toy: Path) -> None:
    figure = {"value": None, "low": None, "reason": "no landmarks"}
    (toy / "metrics/train.json").write_text(json.dumps({"trained": {"accuracy": figure, "loss": None}}))
    edit(toy / "params.yaml", "trained.accuracy:", "trained.accuracy.low:")
    accuracy, loss, missing = [check.evaluation(toy) for check in read_checks(toy, load_graph(toy))]
    assert accuracy.passed
    assert accuracy.description == (
        "trained.accuracy.low was not measured (no landmarks), so its bound (min 0.5) does not apply"
    )
    assert loss.passed
    assert not missing.passed


def test_checks_without_a_bound_are_none(toy: Path) -> None:
    text = (toy / "params.yaml").read_text()
    (toy / "params.yaml").write_text(text[: text.index("checks:")] + "checks:\n")
    assert read_checks(toy, load_graph(toy)) == []


def test_every_item_of_a_foreach_stage_has_the_checks_of_its_section(toy: Path) -> None:
    edit(toy / "dvc.yaml", 'outs: ["data/shards/${key}"]', "metrics: ['metrics/${key}.json']")
    edit(toy / "dvc.yaml", "data/shards/own, data/shards/raw-b000]", "metrics/own.json]")
    edit(toy / "params.yaml", "shard: {", "shard: {checks: {images: {min: 1}}, ")
    found = [check.out for check in read_checks(toy, load_graph(toy)) if check.metric == "images"]
    assert found == ["metrics/raw-b000.json", "metrics/own.json"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("raw: {", "raw: {checks: {a: {min: 1}}, ", r"raw.checks: one metrics file is needed, found \[\]"),
        ("min: 0.9", "mim: 0.9", r"train.checks.untrained.accuracy.mim: unknown key; did you mean 'min'"),
        ("{min: 0.9}", "", r"train.checks.untrained.accuracy"),
        ("raw: {", "raw: {checks: [a], ", r"raw.checks: expected a bound for each metric, found \['a'\]"),
        ("shard: {", "shard: {checks: {a: {min: 1}}, ", r"shard.checks: one metrics file is needed, found \[\]"),
    ],
)
def test_a_check_that_cannot_be_is_refused(toy: Path, old: str, new: str, message: str) -> None:
    edit(toy / "params.yaml", old, new)
    with pytest.raises(ConfigError, match=message):
        read_checks(toy, load_graph(toy))
