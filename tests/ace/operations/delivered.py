"""A small project in a service's clone, with an accepted batch, and deliveries for it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

import ace.operations.deliveries as deliveries_module
from ace.operations.audit import first_problem
from ace.operations.clone import Clone
from ace.operations.deliveries import Deliveries
from ace.operations.incoming import MARKER
from ace.operations.registry import Registry
from ace.operations.tags import read_events
from shards.build.stage import build_shards
from shards.core.errors import UserError
from shards.core.identity import KEY_FILE_VARIABLE, create_key
from shards.core.params import PhantomSourceParams
from shards.delivery.batches import read_batch
from shards.delivery.project import Project
from shards.delivery.register import register_batch
from shards.delivery.yaml_lines import set_value
from shards.runtime.scratch import SCRATCH_VARIABLE
from shards.sources.datasets.folder import FolderSource
from tests.ace.operations.service import init_clone
from tests.support.checkout import git
from tests.support.datasets import Here, grid_params, shard_params, write_batch, write_csv

PARAMS = """\
grid: {grid}
shard: {shard}
batches:
  phantom-b000: data/phantom
mix:
  phantom-b000: {{weight: 0.0, mean: 0.5, std: 0.2}}
pretrain:
  backbone: {{in_channels: 1}}
evaluate: {{batch: phantom-b000, split: test}}
operations:
  deliveries:
    name: clinic
    labels: labels.csv
    modality: chest
    legal_basis: research consent, form 3
"""
DVC = """\
stages:
  shard:
    foreach: ${batches}
    do:
      cmd: python -m shards shard --batch ${key} --num-workers 1
      deps: ["batches/${key}.yaml", "${item}"]
      outs: ["data/shards/${key}"]
  pretrain:
    cmd: echo nothing is trained here
    deps:
      - data/shards/phantom-b000
"""
MEASURED = "clinic-b000"


def chest(seed: int, *, size: int = 64) -> np.ndarray:
    """Draw a picture that has two dark lungs, and that differs from seed to seed in its details."""
    rng = np.random.default_rng(seed)
    row, col = np.mgrid[0:size, 0:size] / size
    lungs = np.exp(-(((col - 0.3) / 0.13) ** 2) - ((row - 0.5) / 0.3) ** 2)
    lungs += np.exp(-(((col - 0.7) / 0.13) ** 2) - ((row - 0.5) / 0.3) ** 2)
    details = Image.fromarray(rng.normal(0, 1, (12, 12)).astype(np.float32)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    levels = 170 - 100 * lungs + 16 * np.asarray(details)
    return np.clip(levels, 20, 235).astype(np.uint8)


def deliver(folder: Path, seeds: range, *, is_complete: bool = True, is_negative: bool = False) -> Path:
    """Put a delivery into a folder: for each seed a picture of a patient of its own."""
    folder.mkdir(parents=True)
    for seed in seeds:
        levels = 255 - chest(seed) if is_negative else chest(seed)
        Image.fromarray(levels).save(folder / f"{seed:04}.png")
    rows = [(f"{seed:04}.png", f"patient {seed}", "PA") for seed in seeds]
    write_csv(folder / "labels.csv", ("path", "patient", "view"), rows)
    if is_complete:
        (folder / MARKER).touch()
    return folder


def make_service(root: Path, images: Path | None = None) -> Path:
    """Make the project with the batch clinic-b000, which is neither built nor committed yet; returns its folder.

    The identity key is in the environment.

    Args:
        root: A new folder, for the project and the batch's images.
        images: Folder of the images, with labels.csv; None: 40 drawn ones.
    """
    project = root / "project"
    project.mkdir(parents=True)
    grid, shard = grid_params(), shard_params()
    write_batch(project, "phantom-b000", PhantomSourceParams(kind="phantom", dep="data/phantom"), grid, shard)
    texts = PARAMS.format(grid=_flow(grid), shard=_flow(shard))
    (project / "params.yaml").write_text(texts, encoding="utf-8")
    (project / "dvc.yaml").write_text(DVC, encoding="utf-8")
    (project / ".gitignore").write_text(
        "/data/\n/deliveries/\n/incoming/\n/quarantine/\n.*.yaml.lock\n.*.tmp\n", encoding="utf-8"
    )
    images = images or deliver(root / "first", range(40))
    files = Project(project / "params.yaml", project / "dvc.yaml")
    register_batch(MEASURED, images, FolderSource(images / "labels.csv"), modality="chest", project=files)
    params = project / "params.yaml"
    params.write_text(set_value(params.read_text(encoding="utf-8"), "evaluate", "batch", MEASURED), encoding="utf-8")
    (project / "incoming").mkdir()
    return project


def commit_all(project: Path) -> None:
    init_clone(project)
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "the project")


def status(project: Path) -> str:
    """What differs from the last commit, but for the event log, whose newest lines always do."""
    return git(project, "status", "--porcelain", "--", ":!registry")


def lines_of_log(project: Path) -> list[tuple[str, str, str]]:
    """Batch, verdict and who of each line of the event log, after an audit of all of it."""
    assert first_problem(Registry(clone=Clone(project), models=project.parent / "served")) is None
    events = read_events(project)
    return [(event.facts["batch"], event.kind.removeprefix("delivery_"), event.who) for event in events]


def build_here(stage: str, project: Path, log: Path) -> str | None:
    """Build the shards of a batch in this process and enter them in dvc.lock, as dvc does in seconds."""
    name = stage.removeprefix("shard@")
    out = project / "data" / "shards" / name
    if out.is_dir():
        return None
    batch = read_batch(name, project)
    assert batch.source.kind == "folder"
    source = batch.source.model_copy(
        update={"dep": str(project / batch.source.dep), "root": str(project / batch.source.root)}
    )
    try:
        build_shards(name, source, batch.grid, batch.shard, out, execution=Here())
    except UserError as error:
        return f"error: {error}"
    lock = project / "dvc.lock"
    text = lock.read_text(encoding="utf-8") if lock.is_file() else "schema: '2.0'\nstages:\n"
    lock.write_text(
        f"{text}  {stage}:\n    cmd: built here\n    outs:\n    - path: data/shards/{name}\n", encoding="utf-8"
    )
    return None


def open_key(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_key(root / "id.key")
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(root / "id.key"))
    monkeypatch.setenv(SCRATCH_VARIABLE, str(root / "scratch"))


def make_built(root: Path) -> None:
    """Make a service's project below `root` with an accepted batch that is built, and its key beside it."""
    with pytest.MonkeyPatch.context() as patch:
        open_key(root, patch)
        project = make_service(root)
        assert build_here(f"shard@{MEASURED}", project, root / "log") is None
        commit_all(project)


def copy_built(made: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of such a project, which a test may change; shards are built in the test's own process."""
    shutil.copytree(made, root, symlinks=True)
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(root / "id.key"))
    monkeypatch.setenv(SCRATCH_VARIABLE, str(root / "scratch"))
    monkeypatch.setattr(deliveries_module, "repro", build_here)
    return root / "project"


def deliveries_of(project: Path) -> Deliveries:
    return Deliveries.open(project / "params.yaml")


def load(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


def mixed(project: Path) -> list[str]:
    """Names of the batches that the last commit trains on."""
    mix = YAML(typ="safe", pure=True).load(git(project, "show", "HEAD:params.yaml"))["mix"]
    return sorted(name for name, item in mix.items() if item["weight"])


def _flow(section: Any) -> str:
    return json.dumps(section.model_dump(mode="json", exclude_none=True))
