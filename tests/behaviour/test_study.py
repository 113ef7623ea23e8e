"""`make study` on the smoke size: killed and resumed, one encoder more, and figures that are those of the record."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ace.drawing.words import Words
from ace.models.folder import WEIGHTS
from ace.report.comparison import compare_encoders
from ace.report.summary import encoders_of
from shards.format.layout import sha256_of
from tests.support.checkout import MAKE, clone_checkout, commit, git, run

STUDY = """\
base: smoke
variants:
  paper:
    loss_weights: {removal: 0}
    augment: {erase: {probability: 0}}
    whitening: null
encoders:
  paper: {model: models/paper, network: teacher}
"""
COMMAND = (*MAKE, "study", "NAME=toy")


def stages_run(printed: str) -> set[str]:
    return set(re.findall(r"Running stage '(.*)'", printed))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_SITE_CACHE_DIR", str(folder / "site-cache"))
        patch.setenv("ACE_SCRATCH", str(folder / "scratch"))
        clone = clone_checkout(folder / "clone")
        (clone / "studies/toy").mkdir()
        (clone / "studies/toy/params.yaml").write_text(STUDY, encoding="utf-8")
        commit(clone)
        yield clone


def killed_in(stage: str, clone: Path) -> None:
    """Start the study and kill all of its processes, dvc's and the training's too, while the stage runs."""
    log = clone.parent / "killed.log"
    environment = {**os.environ, "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin"}
    environment.pop("PYTHONPATH", None)
    with log.open("w") as file:
        process = subprocess.Popen(
            COMMAND, cwd=clone, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        deadline = time.monotonic() + 900
        try:
            while f"Running stage '{stage}'" not in log.read_text():
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.1)
            time.sleep(3)  # into the stage's own command
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_study_goes_on_after_a_kill_and_one_encoder_more_trains_nothing_again(clone: Path) -> None:
    killed_in("variant@paper", clone)
    ran = stages_run(run(clone, *COMMAND))
    assert "variant@paper" in ran
    assert not ran & {"phantom", "pretrain", "shard@phantom-b000"}, "what was finished is not done again"

    study, work = clone / "studies/toy", clone / "studies/toy/work/params"
    figures = json.loads((study / "properties.json").read_text())
    assert figures == json.loads((work / "metrics/properties.json").read_text())
    names = encoders_of(figures)
    assert names == ["trained", "untrained", "imagenet", "paper"]
    table = (study / "table.md").read_text()
    comparison = compare_encoders(figures, names, Words(one="patient"))
    for name, cells in comparison.rows.items():
        (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
        assert [cell.split("<br>")[0] for cell in line.strip("| ").split(" | ")[1:]] == [
            " ".join(cell.text) for cell in cells
        ]
    chart = (study / "table.svg").read_text()
    assert all(name in chart for name in ("trained", "untrained", "ImageNet", "paper", "Compositionality"))
    assert "<image" not in chart
    trainings = json.loads((study / "trainings.json").read_text())
    assert trainings.keys() == {"pretrain", "variants.paper"}
    assert len({training["step"] for training in trainings.values()}) == 1, "as many steps for each"
    changed = git(clone, "status", "--porcelain").splitlines()
    assert {line[3:].split("/")[0] for line in changed} == {"studies"}, "the checkout itself stays as it is"

    added = ("encoder", "add", "third", "--train", "seed=5", "--params", "studies/toy/params.yaml")
    run(clone, sys.executable, "-m", "ace", *added)
    stages = {"variant@third", "cohort", "measure@third", "evaluate", "report", "explore"}
    assert stages_run(run(clone, *COMMAND)) == stages
    assert not stages_run(run(clone, *COMMAND))
    more = json.loads((study / "properties.json").read_text())
    assert encoders_of(more) == [*names, "third"]
    assert {name: more[name] for name in names} == {name: figures[name] for name in names}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_row_is_of_its_own_model_and_a_swap_is_noticed(clone: Path) -> None:
    run(clone, *COMMAND)
    work = clone / "studies/toy/work/params"
    told = {path.parent.name: json.loads(path.read_text()) for path in work.glob("data/answers/*/answers.json")}
    for name, model in (("trained", "ace"), ("paper", "paper"), ("imagenet", "imagenet")):
        assert told[name]["weights_sha256"] == sha256_of(work / "models" / model / WEIGHTS["teacher"])
    assert len({own["weights_sha256"] for own in told.values()}) == len(told), "no model twice"
    swapped = ["--set", "encoders.paper.model=models/ace"]
    command = [sys.executable, "-m", "ace", "evaluate", *swapped]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "has model models/paper, expected models/ace" in done.stderr
