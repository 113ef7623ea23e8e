"""A service's clone with two registered batches, a real dvc, and models that say whom they were trained with."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ace.operations.clone import Clone
from ace.operations.registry import Registry
from ace.operations.withdrawal import Withdrawals
from shards.build.stage import build_shards
from shards.core.identity import KEY_FILE_VARIABLE
from shards.core.params import PhantomSourceParams
from shards.delivery.batches import read_batch
from shards.delivery.manifest import iterate_manifest
from shards.delivery.project import Project
from shards.delivery.register import register_batch
from shards.format.layout import sha256_of
from shards.reading.reader import ShardIndex
from shards.runtime.scratch import SCRATCH_VARIABLE
from shards.sources.datasets.folder import FolderSource
from tests.ace.operations.delivered import deliver
from tests.ace.operations.service import ANNA, Clock, init_clone
from tests.support.checkout import git
from tests.support.datasets import Here, grid_params, shard_params, write_batch, write_csv

FIRST, SECOND = "clinic-b000", "clinic-b001"
KEY = "5eed" * 16
"""The same in every test, so that all patients have the same splits."""
PARAMS = """\
grid: {grid}
shard: {shard}
batches:
  phantom-b000: data/phantom
mix:
  phantom-b000: {{weight: 1.0, mean: 0.5, std: 0.2}}
pretrain:
  backbone: {{in_channels: 1}}
evaluate: {{batch: phantom-b000, split: test}}
operations:
  deliveries: {{name: clinic, labels: labels.csv, site: clinic, modality: chest}}
"""
DVC = """\
stages:
  shard:
    foreach: ${batches}
    do:
      cmd: "false"
      deps: ["batches/${key}.yaml", "${item}"]
      outs: ["data/shards/${key}"]
  pretrain:
    cmd: python train.py
    params: [mix]
    deps:
      - data/shards/phantom-b000
    outs:
      - models/ace
  measure:
    cmd: mkdir -p data/answers && cp models/ace/training_images.csv data/answers/trained
    deps:
      - data/shards/${evaluate.batch}
      - models/ace
    outs:
      - data/answers/trained
"""
TRAIN = """\
import json
from pathlib import Path
from ruamel.yaml import YAML
from shards.reading.lineage import write_lineage
from shards.format.layout import sha256_of
from shards.reading.reader import ShardIndex

mix = YAML(typ="safe", pure=True).load(Path("params.yaml"))["mix"]
model = Path("models/ace")
model.mkdir(parents=True)
(model / "config.json").write_text("{}")
(model / "README.md").write_text("# a model")
write_lineage(model, {name: ShardIndex.open(f"data/shards/{name}").without_excluded(Path()) for name in mix})
(model / "teacher_backbone.safetensors").write_text(" ".join(sha256_of(path) for path in sorted(model.iterdir())))
"""


@dataclass
class Clinic:
    """The service, as tests use it."""

    root: Path
    models: Path
    clock: Clock = field(default_factory=Clock)

    @property
    def registry(self) -> Registry:
        return Registry(clone=Clone(self.root), models=self.models, clock=self.clock)

    @property
    def withdrawals(self) -> Withdrawals:
        return Withdrawals(self.registry)

    @property
    def kinds(self) -> list[str]:
        """Kinds of the events about withdrawals."""
        return [event.kind for event in self.registry.events() if event.kind.startswith("withdrawal")]

    @property
    def changed(self) -> str:
        """What differs from the last commit, but for the event log."""
        return git(self.root, "status", "--porcelain", "--", ":!registry")

    def index(self, name: str) -> ShardIndex:
        return ShardIndex.open(self.root / "data/shards" / name)

    def fingerprint(self, name: str) -> str:
        return sha256_of(self.root / "data/shards" / name / "index.json")

    def train(self, text: str) -> None:
        """Run what is stale, and commit it."""
        dvc(self.root, "repro", "--quiet", "pretrain", "measure")
        self.commit(text)

    def commit(self, text: str) -> None:
        git(self.root, "add", "--all", "--", ":!registry")
        git(self.root, "commit", "--quiet", "--allow-empty", "-m", text)

    def patients(self, split: str) -> list[str]:
        """Ids of the patients of a split who have two images in the first batch and one in the second."""
        manifest = self.root / f"data/manifests/{FIRST}.jsonl"
        rows = self.index(FIRST)
        pseudonyms = {str(key.decode()) for key in rows.rows["patient"][rows.select(split)]}
        found = [entry.record for _, entry in iterate_manifest(manifest)[1] if entry.record.patient in pseudonyms]
        seeds = {int(Path(record.image.path).stem) for record in found}
        return [id_of(seed) for seed in sorted(seeds) if seed < NUM_TWICE]

    def pseudonym(self, patient: str) -> str:
        manifest = self.root / f"data/manifests/{FIRST}.jsonl"
        seed = int(patient.split()[-1])
        return next(
            entry.record.patient
            for _, entry in iterate_manifest(manifest)[1]
            if int(Path(entry.record.image.path).stem) == seed
        )


NUM_TWICE = 12
_FIRST, _SECOND = range(36), range(100, 124)


def id_of(seed: int) -> str:
    return f"Zaphod Canary {seed}"


def dvc(root: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def stale(root: Path) -> set[str]:
    """Names of the stages that dvc would run."""
    return set(json.loads(dvc(root, "status", "--json")))


def set_environment(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv(KEY_FILE_VARIABLE, str(folder / "id.key"))
    patch.setenv(SCRATCH_VARIABLE, str(folder / "scratch"))
    patch.setenv("ACE_MODELS", str(folder / "served"))
    patch.chdir(folder / "project")


def make_clinic(folder: Path, patch: pytest.MonkeyPatch) -> Clinic:
    """Make the service with version 1, which was trained with both batches.

    The first twelve patients have two images in the first batch and one in the second.
    """
    root = folder / "project"
    (root / ".dvc").mkdir(parents=True)
    (folder / "id.key").write_text(KEY)
    set_environment(folder, patch)
    grid, shard = grid_params(), shard_params()
    write_batch(root, "phantom-b000", PhantomSourceParams(kind="phantom", dep="data/phantom"), grid, shard)
    flow = [json.dumps(section.model_dump(mode="json", exclude_none=True)) for section in (grid, shard)]
    (root / "params.yaml").write_text(PARAMS.format(grid=flow[0], shard=flow[1]))
    (root / "dvc.yaml").write_text(DVC)
    (root / "train.py").write_text(TRAIN)
    (root / ".dvc/config").write_text("[core]\n    analytics = false\n")
    (root / ".dvcignore").touch()
    (root / ".gitignore").write_text(
        "/.dvc/cache\n/.dvc/tmp\n/data/\n/models/\n/deliveries/\n/incoming/\n/quarantine/\n.*.yaml.lock\n.*.tmp\n"
    )
    files = Project(root / "params.yaml", root / "dvc.yaml")
    for name, seeds, is_only in ((FIRST, _FIRST, True), (SECOND, _SECOND, False)):
        images = deliver(folder / name, seeds)
        rows = [(f"{seed:04}.png", id_of(seed % 100 if seed >= 100 else seed % 24), "PA") for seed in seeds]
        write_csv(images / "labels.csv", ("path", "patient", "view"), rows)
        source = FolderSource(images / "labels.csv")
        register_batch(name, images, source, site="clinic", modality="chest", only=is_only, project=files)
        build(root, name)
    (root / "batches/phantom-b000.yaml").unlink()
    init_clone(root)
    dvc(root, "commit", "--quiet", "--force", f"shard@{FIRST}", f"shard@{SECOND}")
    clinic = Clinic(root, folder / "served")
    clinic.train("the project, and a model")
    clinic.registry.promote(ANNA)
    return clinic


def build(root: Path, name: str) -> None:
    """Build the shards of a batch in this process."""
    batch = read_batch(name, root)
    assert batch.source.kind == "folder"
    paths = {"dep": str(root / batch.source.dep), "root": str(root / batch.source.root)}
    source = batch.source.model_copy(update=paths)
    build_shards(name, source, batch.grid, batch.shard, root / "data/shards" / name, execution=Here())


def copy_clinic(template: Path, folder: Path, patch: pytest.MonkeyPatch) -> Clinic:
    shutil.copytree(template, folder, symlinks=True)
    set_environment(folder, patch)
    return Clinic(folder / "project", folder / "served")


def rebuild(stage: str, root: Path, log: Path) -> str | None:
    """Do what `dvc repro -s STAGE` does, with the shards built in this process."""
    name = stage.removeprefix("shard@")
    if stage in stale(root):
        shutil.rmtree(root / "data/shards" / name, ignore_errors=True)
        build(root, name)
        dvc(root, "commit", "--quiet", "--force", stage)
    return None


def add_stores(clinic: Clinic) -> None:
    """Give the service a remote of DVC's and an `origin`, and commit that."""
    folder = clinic.root.parent
    (folder / "remote").mkdir()
    (clinic.root / ".dvc/config").write_text(
        "[core]\n    analytics = false\n    remote = store\n['remote \"store\"']\n    url = ../../remote\n"
    )
    git(folder, "init", "--quiet", "--bare", "--initial-branch", "service", "origin.git")
    git(clinic.root, "config", "remote.origin.url", "../origin.git")
    git(clinic.root, "config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*")
    clinic.commit("the remotes")
