"""What makes a stage of the real graph stale, and what does not, as DVC itself tells."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from dvc.repo import Repo

from ace.__main__ import build_parser
from pipelines.graph import load_graph
from shards.cli import run_command
from shards.delivery.yaml_lines import add_item, set_dep
from tests.pipelines.test_staleness import stale_in_dvc
from tests.support.checkout import clone_checkout

SHARD = "shard@phantom-b000"
MEASURE = {"measure@trained", "measure@untrained", "measure@imagenet"}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text, path
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clone_checkout(tmp_path_factory.mktemp("staleness") / "clone")


@pytest.fixture(scope="module")
def versions(clone: Path) -> dict[str, str]:
    """Each stage's version in the clone as it is."""
    return versions_of(clone)


def versions_of(clone: Path) -> dict[str, str]:
    return {stage.name: stage.code_version for stage in load_graph(clone).stages}


def stale_after(clone: Path, before: dict[str, str], change: Callable[[Path], None]) -> set[str]:
    """Stages of these versions that DVC would run again after a change, which is undone."""
    kept = {path: path.read_bytes() for path in clone.rglob("*") if path.is_file() and ".git" not in path.parts}
    try:
        change(clone)
        after = versions_of(clone)
    finally:
        for path in {path for path in clone.rglob("*") if path.is_file() and ".git" not in path.parts} - kept.keys():
            path.unlink()
        for path, content in kept.items():
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)
    return {name for name, version in after.items() if version != before.get(name)}


def commit(*stages: str | None) -> None:
    """As `dvc commit --force` of these stages in the current folder; None stands for all."""
    with Repo() as repo:
        for stage in stages:
            repo.commit(stage, force=True)


def another_batch(clone: Path) -> None:
    params = clone / "params.yaml"
    text = add_item(params.read_text(encoding="utf-8"), "batches", "clinic-b000", "data/manifests/clinic-b000.jsonl")
    params.write_text(text, encoding="utf-8")
    batch = (clone / "batches/phantom-b000.yaml").read_text(encoding="utf-8")
    (clone / "batches/clinic-b000.yaml").write_text(batch.replace("min_std: 5.0", "min_std: 6.0"), encoding="utf-8")


def other_settings_of_new_batches(clone: Path) -> None:
    edit(clone / "params.yaml", "num_images_per_shard", "num_images_per_shard: 8  # was")


def exclude(clone: Path, name: str, sha256: str = "0") -> None:
    """As `python -m shards exclude`, without the images."""
    (clone / f"batches/{name}.exclude.yaml").write_text(f"list_sha256: {sha256}\n", encoding="utf-8")
    dvc = clone / "dvc.yaml"
    text = set_dep(dvc.read_text(encoding="utf-8"), f"batches/{name}.exclude.yaml", name, wanted=True)
    dvc.write_text(text, encoding="utf-8")


def comments_everywhere(clone: Path) -> None:
    for name in ("params.yaml", "versions.yaml"):
        (clone / name).write_text("# a comment\n" + (clone / name).read_text(encoding="utf-8"), encoding="utf-8")


def shard_code(clone: Path) -> None:
    for name in (
        "build/stage.py",
        "build/tar_builder.py",
        "checking/commands.py",
        "__main__.py",
        "sources/datasets/folder.py",
        "quality/judge.py",
    ):
        with (clone / "shards" / name).open("a", encoding="utf-8") as file:
            file.write("# another word\n")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(shard_code, set(), id="code of shards and of its commands"),
        pytest.param(comments_everywhere, set(), id="comments"),
        pytest.param(other_settings_of_new_batches, set(), id="settings of batches to come"),
        pytest.param(another_batch, {"shard@clinic-b000"}, id="another batch, with settings of its own"),
        pytest.param(lambda clone: edit(clone / "versions.yaml", "shard: 1", "shard: 2"), {SHARD}, id="a version"),
        pytest.param(
            lambda clone: edit(clone / "batches/phantom-b000.yaml", "min_std: 5.0", "min_std: 6.0"),
            {SHARD},
            id="the batch's own settings",
        ),
        pytest.param(
            lambda clone: edit(clone / "params.yaml", "{weight: 1.0, mean", "{weight: 2.0, mean"),
            {"pretrain"},
            id="the mix",
        ),
        pytest.param(
            lambda clone: exclude(clone, "phantom-b000"),
            {"pretrain", "cohort", *MEASURE, "evaluate", "report", "explore"},
            id="images that nothing shall read any more",
        ),
        pytest.param(
            lambda clone: exclude(clone, "test-b000"),
            {"cohort", *MEASURE, "evaluate", "explore"},
            id="likewise, of a batch that is not trained on",
        ),
        pytest.param(
            lambda clone: edit(clone / "batches/phantom-b000.yaml", "mean: 0.482", "mean: 0.5"),
            {SHARD, *MEASURE},
            id="what was measured of the batch",
        ),
        pytest.param(
            lambda clone: edit(clone / "params.yaml", "num_resamples: 200", "num_resamples: 300"),
            {"evaluate"},
            id="how often patients are resampled",
        ),
        pytest.param(
            lambda clone: edit(clone / "params.yaml", "    colours: {}", "    # no colours"),
            {"cohort", *MEASURE, "evaluate", "explore"},
            id="the properties that are measured",
        ),
    ],
)
def test_a_change_makes_stale_what_depends_on_it_and_nothing_else(
    change: Callable[[Path], None], expected: set[str], clone: Path, versions: dict[str, str]
) -> None:
    assert stale_after(clone, versions, change) == expected


@pytest.mark.slow
def test_a_task_is_a_stage_once_it_is_asked_for_and_its_file_concerns_it_alone(clone: Path, tmp_path: Path) -> None:
    clone = Path(shutil.copytree(clone, tmp_path / "clone", symlinks=True))
    assert not [stage for stage in load_graph(clone).stages if stage.word == "finetune"]
    edit(clone / "params.yaml", "finetune: {}", "finetune: {phantom: phantom-b000}")
    for command in (("encoder", "list"), ("config", "check")):
        assert run_command(build_parser(), (*command, "--params", str(clone / "params.yaml"))) == 0
    (stage,) = [stage for stage in load_graph(clone).stages if stage.word == "finetune"]
    assert (stage.name, stage.cmd) == ("finetune@phantom", "python -m ace finetune phantom --batch phantom-b000")
    assert set(stage.inputs) == {"data/shards/phantom-b000", "models/ace", "models/imagenet"}
    assert [out.path for out in stage.outs] == ["data/finetuned/phantom", "metrics/finetune/phantom.json"]
    versions = versions_of(clone)
    for change in (
        lambda clone: edit(clone / "configs/tasks/phantom.yaml", "epochs: 40", "epochs: 41"),
        lambda clone: edit(clone / "ace/downstream/parts.py", "import hashlib", "import hashlib  # another word"),
    ):
        assert stale_after(clone, versions, change) == {"finetune@phantom"}
    assert stale_after(clone, versions, lambda clone: exclude(clone, "test-b000")) >= {"finetune@phantom"}


def test_another_list_of_excluded_images_makes_no_shard_stale(clone: Path) -> None:
    kept = (clone / "dvc.yaml").read_bytes()
    exclude(clone, "phantom-b000")
    stale = stale_after(clone, versions_of(clone), lambda clone: exclude(clone, "phantom-b000", "1"))
    assert stale == {"pretrain", "cohort", *MEASURE, "evaluate", "report", "explore"}
    (clone / "batches/phantom-b000.exclude.yaml").unlink()
    (clone / "dvc.yaml").write_bytes(kept)


def test_a_changed_command_line_card_or_log_makes_no_stage_stale(clone: Path, versions: dict[str, str]) -> None:
    def change(clone: Path) -> None:
        for name in (
            "ace/__main__.py",
            "ace/commands/training.py",
            "shards/checking/commands.py",
            "shards/delivery/register.py",
            "shards/delivery/project.py",
            "shards/checking/exclude.py",
            "ace/config.py",
            "ace/journal/card.py",
            "ace/journal/log.py",
            "ace/journal/loggers.py",
        ):
            with (clone / name).open("a", encoding="utf-8") as file:
                file.write("# another help text\n")

    assert stale_after(clone, versions, change) == set()


@pytest.mark.slow
def test_another_encoder_is_measured_and_compared_and_no_other_is_measured_again(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = Path(shutil.copytree(clone, tmp_path / "clone", symlinks=True))
    monkeypatch.chdir(clone)
    for out in sorted(load_graph(clone).produced):  # stand-ins: DVC compares their md5s alone
        path = clone / out
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_dir():
            path.write_text(f"what stands for {out}\n", encoding="utf-8")
    commit(None)
    assert stale_in_dvc(clone) == set()
    edit(
        clone / "params.yaml",
        "  untrained: {model",
        "  student: {model: models/ace, network: student}\n  untrained: {model",
    )
    edit(clone / "dvc.yaml", "data/answers/imagenet", "data/answers/imagenet, data/answers/student")
    assert run_command(build_parser(), ("config", "check", "--params", str(clone / "params.yaml"))) == 0
    assert stale_in_dvc(clone) == {"cohort", "measure@student", "evaluate", "explore"}
    # The patients stay who they were, so that `cohort` writes the same file: what follows are the pages alone.
    (clone / "data/answers/student").write_text("answers\n", encoding="utf-8")
    commit("cohort", "measure@student")
    (clone / "data/evidence").write_text("other evidence\n", encoding="utf-8")
    commit("evaluate")
    assert stale_in_dvc(clone) == {"report", "explore"}
