"""One command adds an encoder: to a project, whose graph then has its stages, or to the configuration of a study."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from ace.__main__ import build_parser
from ace.config import Config, check_graph, complete, merged, resolve, use
from ace.explorer.explore import MAX_BYTES
from ace.models.params import FileWeightsParams
from ace.models.weights import check_weights
from ace.protocol.dense import location_axis
from pipelines.graph import load_graph
from shards.cli import run_command
from shards.core.config import read_params
from shards.core.errors import ConfigError
from shards.delivery.yaml_lines import enter_item, set_deps
from tests.support.checkout import ROOT, git


def encoder(*arguments: str) -> int:
    return run_command(build_parser(), ["encoder", *arguments])


def config_of(project: Path) -> Config:
    return Config.from_params(read_params(project / "params.yaml"), "params.yaml")


def test_a_training_an_existing_model_and_weights_of_others_are_each_added_by_one_command(project: Path) -> None:
    (project / "weights.pth").write_bytes(b"stand-in")
    assert encoder("add", "student", "--model", "models/ace", "--network", "student") == 0
    assert encoder("add", "plain", "--train", "loss_weights.removal=0", "--train", "augment.erase.probability=0") == 0
    weights = ("--weights", "weights.pth", "--architecture", "swin_tiny_patch4_window7_224")
    assert encoder("add", "swin", *weights) == 0
    config = config_of(project)
    check_graph(config, project / "dvc.yaml")
    assert list(config.encoders)[-3:] == ["student", "plain", "swin"]
    assert config.encoders["plain"].model == "models/plain"
    assert config.trainings["variants.plain"].loss_weights.removal == 0
    assert config.trainings["variants.plain"].epochs == config.pretrain.epochs
    assert config.imports["swin"].weights.kind == "file"
    text = (project / "params.yaml").read_text(encoding="utf-8")
    kept = [line for line in (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines() if line.strip()]
    assert set(kept) - set(text.splitlines()) <= {line for line in kept if line.startswith("variants:")}


def test_one_encoder_more_makes_no_training_and_no_measurement_of_another_stale(project: Path) -> None:
    git(project, "init", "--quiet")
    shutil.copytree(ROOT / ".dvc", project / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    for folder in ("ace", "shards"):
        (project / folder).symlink_to(ROOT / folder)
    before = {stage.name: stage.code_version for stage in load_graph(project).stages}
    assert encoder("add", "plain", "--train", "loss_weights.removal=0", "--train", "augment.erase.probability=0") == 0
    after = {stage.name: stage.code_version for stage in load_graph(project).stages}
    assert after.keys() - before.keys() == {"variant@plain", "measure@plain"}
    assert {name for name in before if after[name] != before[name]} == {"cohort", "evaluate", "explore"}


def test_an_encoder_is_added_to_the_configuration_of_a_study(project: Path) -> None:
    study = project / "studies/mine"
    study.mkdir(parents=True)
    (study / "params.yaml").write_text("base: [smoke]\nreport: {title: mine}\n", encoding="utf-8")
    own = ("--params", "studies/mine/params.yaml")
    assert encoder("add", "seed_one", "--train", "seed=1", *own) == 0
    values = read_params(study / "params.yaml")
    assert values["variants"] == {"seed_one": {"seed": 1}}
    dvc = (project / "dvc.yaml").read_text(encoding="utf-8")
    assert dvc == (ROOT / "dvc.yaml").read_text(encoding="utf-8"), "the project's own graph stays"
    use("studies/mine/params.yaml")
    config = config_of(project)
    check_graph(config, project / "dvc.yaml")
    assert config.trainings["variants.seed_one"].seed == 1
    use("demo")
    assert (project / "dvc.yaml").read_text(encoding="utf-8") == dvc
    assert config_of(project).variants == {}


def test_the_command_that_trains_a_variant_tells_its_mistakes_of_the_variant(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACE_SCRATCH", str(project / "scratch"))
    params = project / "params.yaml"
    text = params.read_text(encoding="utf-8")
    params.write_text(text.replace("variants: {}", "variants: {odd: {epoch: 3}}"), encoding="utf-8")
    assert run_command(build_parser(), ["variant", "odd"]) == 2
    assert "params.yaml: variants.odd.epoch: unknown key" in capsys.readouterr().err


def test_weights_in_a_relative_path_are_found_from_a_studys_work_tree_too(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, weights = project / "studies/mine/params.yaml", project / "weights/one.safetensors"
    study.parent.mkdir(parents=True)
    study.write_text("base: [smoke]\n", encoding="utf-8")
    weights.parent.mkdir()
    weights.write_bytes(b"stand-in")
    own = ("--weights", "weights/one.safetensors", "--architecture", "swin_tiny_patch4_window7_224")
    assert encoder("add", "other", *own, "--params", str(study)) == 0
    work = project / "studies/mine/work/params"
    work.mkdir(parents=True)
    values = complete(read_params(study))
    monkeypatch.chdir(work)
    found = Config.from_params(values, "params.yaml").imports["other"]
    check_weights(found.backbone)  # finds the file, and its sha256
    assert isinstance(found.weights, FileWeightsParams)
    assert found.weights.path == str(weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trained", "--model", "models/x"], "encoders has 'trained' already"),
        (["x"], "give one of --model MODEL"),
        (["x", "--model", "models/x", "--train", "seed=1"], "give one of --model MODEL"),
        (["x", "--weights", "params.yaml"], "give --architecture"),
        (["x", "--train", "sed=1"], "variants.x: sed: unknown key; did you mean 'seed'"),
        (["imagenet2", "--train", "loss_weights.removal=0"], "loss_weights.removal 0"),
        (["ace", "--train", "seed=1"], "'ace' names two model folders"),
        (["labels", "--model", "models/x"], "'labels' is a section of the metrics already"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    before = [(project / name).read_bytes() for name in ("params.yaml", "dvc.yaml")]
    assert encoder("add", *arguments) == 2
    assert message in capsys.readouterr().err
    assert before == [(project / name).read_bytes() for name in ("params.yaml", "dvc.yaml")]


def test_a_shipped_model_is_added_by_its_name_and_the_graph_depends_on_its_folder(project: Path) -> None:
    assert encoder("add", "shipped", "--model", "cxr-small") == 0
    folder = Path(config_of(project).encoders["shipped"].model)
    assert (folder / "config.json").is_file(), "a name would be a dep that DVC does not find"
    assert folder == ROOT / "ace/zoo/cxr-small"


def test_nothing_is_written_where_dvc_yaml_cannot_be_edited(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dvc = project / "dvc.yaml"
    text = dvc.read_text(encoding="utf-8")
    dvc.write_text(text.replace("models/ace, models/imagenet,", "models/ace, models/imagenet, x,"), encoding="utf-8")
    before = [(project / name).read_bytes() for name in ("params.yaml", "dvc.yaml")]
    assert encoder("add", "x", "--model", "models/x") == 2
    assert "write them there by hand" in capsys.readouterr().err
    assert before == [(project / name).read_bytes() for name in ("params.yaml", "dvc.yaml")]


def test_list_writes_what_dvc_yaml_lacks(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dvc = project / "dvc.yaml"
    whole = dvc.read_text(encoding="utf-8")
    dvc.write_text(whole.replace(", data/answers/imagenet", ""), encoding="utf-8")
    with pytest.raises(ConfigError, match="`python -m ace encoder list` writes these there instead"):
        check_graph(config_of(project), dvc)
    assert encoder("list") == 0
    assert dvc.read_text(encoding="utf-8") == whole
    assert "imagenet: teacher of models/imagenet" in capsys.readouterr().out


DEPS = "stages:\n  one:\n    deps: [\n      ace/data,\n      models/a, models/b,\n      data/x,\n    ]\n"


def test_deps_of_one_beginning_are_set_and_long_lists_are_broken() -> None:
    assert set_deps(DEPS, "one", ("models/",), ["models/b", "models/a"]) == DEPS
    assert set_deps(DEPS, "two", ("models/",), ["models/a"]) == DEPS
    assert set_deps(DEPS, "one", ("models/",), ["models/c"]) == DEPS.replace("models/a, models/b", "models/c")
    many = [f"models/encoder-{number}" for number in range(20)]
    text = set_deps(DEPS, "one", ("models/",), many)
    assert max(map(len, text.splitlines())) <= 120
    assert set_deps(text, "one", ("models/",), ["models/a", "models/b"]) == DEPS
    with pytest.raises(ConfigError, match=r"one.deps: expected the paths models/… on lines of their own"):
        set_deps(DEPS.replace("data/x", "data/x, models/d"), "one", ("models/",), ["models/c"])


@pytest.mark.parametrize(
    "text", ["a: 1\n", "a: 1\nvariants: {}  # none\n", "variants:\na: 1\n", "variants:\n  y: {b: 2}\na: 1\n"]
)
def test_an_item_is_entered_where_the_section_is_full_empty_or_missing(text: str) -> None:
    import io

    from ruamel.yaml import YAML

    def load(text: str) -> Any:
        return YAML(typ="safe", pure=True).load(io.StringIO(text))

    before, after = load(text), load(enter_item(text, "variants", "x", {"b": {"c": 1}, "d": None}))
    assert after == {**before, "variants": {**(before.get("variants") or {}), "x": {"b": {"c": 1}, "d": None}}}


def test_arguments_of_another_architecture_take_the_place_of_the_bases() -> None:
    base = {"name": "convnext_atto", "model_args": {"patch_size": 8, "dims": [1]}}
    assert merged(base, {"model_args": {"dims": [2]}})["model_args"] == {"patch_size": 8, "dims": [2]}
    other = merged(base, {"name": "tf_efficientnet_lite0", "model_args": {"output_stride": 16}})
    assert other["model_args"] == {"output_stride": 16}


def test_several_bases_are_laid_one_over_another() -> None:
    values = complete({"base": ["cxr_wide", "studies/encoders.yaml"], "report": {"title": "x"}})
    wide = resolve("cxr_wide")
    assert values["pretrain"] == wide["pretrain"]
    assert "paper" in values["variants"]
    assert values["report"]["title"] == "x"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "studies").glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_the_encoders_of_a_study_have_equal_budgets_and_only_known_params(path: Path) -> None:
    config = Config.from_params(resolve(str(path)), path.name)
    trainings = config.trainings.values()
    assert len({(training.batch_size, training.seed, training.precision) for training in trainings}) == 1
    epochs = {name: training.epochs for name, training in config.trainings.items()}
    thirds = {3 * epochs.pop(name) for name in ("variants.from_imagenet",) if name in epochs}
    assert len(thirds | set(epochs.values())) == 1, "a step of EfficientNet-Lite0 takes four times as long"
    models = {encoder.model for encoder in config.encoders.values()}
    made = {"models/ace", *(f"models/{name}" for name in (*config.variants, *config.imports))}
    assert models == made, "every training is measured, and every encoder has a model"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "studies").glob("*/seed*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_another_training_seed_changes_nothing_else_of_the_main_rows(path: Path) -> None:
    run = Config.from_params(resolve(str(path)), path.name)
    whole = Config.from_params(resolve(str(path.parent / "params.yaml")), "params.yaml")
    seed = int(path.stem.removeprefix("seed"))
    assert run.pretrain == whole.pretrain.model_copy(update={"seed": seed})
    assert set(run.encoders) == {"trained", "untrained", "imagenet", "paper"}
    assert {"variants.paper", "pretrain"} == set(run.trainings)
    assert run.trainings["variants.paper"] == whole.trainings["variants.paper"].model_copy(update={"seed": seed})
    for section in ("grid", "shard", "phantom", "imports", "evaluate"):
        assert getattr(run, section) == getattr(whole, section)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "studies").glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_the_encoders_of_a_study_fit_on_one_page_of_the_explorer(path: Path) -> None:
    config = Config.from_params(resolve(str(path)), path.name)
    shown, dense = config.evaluate.properties.explorer, config.evaluate.dense
    axis = location_axis(config.grid.spec, dense.locations_per_cell, dense.window_step_cells)
    tokens = len(config.encoders) * (shown.num_patients + shown.num_mirrored) * len(axis.positions_px) ** 2
    assert tokens * shown.num_components * 4 / 3 < 0.8 * MAX_BYTES, "one byte a number, in base64, beside the pictures"
