import json
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import CodeType
from typing import Any

import jinja2
import numpy as np
import pytest
from jinja2.bccache import Bucket

from ace.drawing import plots
from ace.evaluation.at_once import evaluate_at_once
from ace.evaluation.params import EvaluateParams
from ace.evaluation.setting import StagePaths
from ace.report import page
from shards.build.stage import build_shards
from shards.core.params import ShardParams
from shards.reading.lineage import write_lineage
from shards.reading.reader import ShardIndex
from tests.ace.evaluation.drawn_project import (
    BATCH,
    EVALUATE,
    GRID,
    SHARD,
    draw_chest,
    encoders_of,
    paths_of,
    write_imported,
    write_model,
    write_project,
)
from tests.support.datasets import Here, folder_params

LOCK = """\
schema: '2.0'
stages:
  pretrain:
    cmd: python -m ace pretrain
    outs:
    - path: models/ace
      hash: md5
      md5: 0123456789abcdef0123456789abcdef.dir
      size: 12345678
"""
DRAWN: dict[bytes, str] = {}
"""The plots drawn so far, by function and arguments: most pages of these tests differ in words alone."""


class Compiled(jinja2.BytecodeCache):
    """Templates compiled so far, in memory."""

    def __init__(self) -> None:
        self.codes: dict[str, tuple[str, CodeType | None]] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        checksum, code = self.codes.get(bucket.key, ("", None))
        bucket.code = code if checksum == bucket.checksum else None

    def dump_bytecode(self, bucket: Bucket) -> None:
        self.codes[bucket.key] = (bucket.checksum, bucket.code)


@pytest.fixture(scope="session", autouse=True)
def drawn_once() -> Iterator[None]:
    """Draw no plot twice and compile no template twice, which takes four fifths of a page's time."""
    compiled, environment_of = Compiled(), page.environment_of

    def remembered(name: str, draw: Callable[..., str]) -> Callable[..., str]:
        def drawn(*arguments: Any) -> str:
            key = pickle.dumps((name, arguments))
            if key not in DRAWN:
                DRAWN[key] = draw(*arguments)
            return DRAWN[key]

        return drawn

    def environment(encoders: Sequence[str]) -> jinja2.Environment:
        own = environment_of(encoders)
        own.bytecode_cache = compiled
        return own

    with pytest.MonkeyPatch.context() as patch:
        for name in ("curve", "density_plot", "error_curves", "scatter_panels"):
            patch.setattr(plots, name, remembered(name, getattr(plots, name)))
        patch.setattr(page, "environment_of", environment)
        yield


def paths_in(root: Path) -> StagePaths:
    """Where the stages of a project write."""
    metrics, evidence = root / "metrics/properties.json", root / "data/evidence"
    return replace(paths_of(root, root / "data"), metrics=metrics, evidence=evidence)


def tell_lineage(root: Path, batch: str) -> None:
    """What a training writes into the model's folder about the images that it was trained on."""
    write_lineage(root / "models/ace", {batch: ShardIndex.open(root / "data/shards" / batch)})


@pytest.fixture(scope="session")
def evaluated_project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project in which every stage but `report` has run."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("project")
        patch.setenv("ACE_SCRATCH", str(root / "scratch"))
        write_project(root)
        tell_lineage(root, BATCH)
        params = EvaluateParams.from_params(EVALUATE, "evaluate")
        evaluate_at_once(params, encoders_of(root), paths_in(root))
        metrics = root / "metrics/properties.json"
        (root / "params.yaml").write_text("grid: {n: 8}\nreport: {title: <script>not markup</script>}\n")
        (root / "dvc.lock").write_text(LOCK)
        assert json.loads(metrics.read_text())["trained"]["correspondence_px_at_1024"]["value"] > 0
        yield root


CLINIC = "clinic-b000"
CLINIC_PARAMS = """\
# This is a configuration that was made for virtual patients of the phantom.
phantom: {num_patients: 200}
grid: {n: 8}
batches:
  clinic-b000: {source: {kind: folder}}
pretrain:
  probe: {every_epochs: 0}  # 200 virtual patients are too few
"""
CLINIC_LOCK = """\
schema: '2.0'
stages:
  phantom:
    outs: [{path: data/phantom, md5: aa.dir, size: 1}]
  shard@phantom-b000:
    deps: [{path: data/phantom}]
    outs: [{path: data/shards/phantom-b000, md5: bb.dir, size: 1}]
  pretrain:
    deps: [{path: data/shards/clinic-b000}]
    outs: [{path: models/ace, md5: cc.dir, size: 1}, {path: metrics/pretrain/metrics.json, md5: dd, size: 1}]
  evaluate:
    deps: [{path: data/shards/clinic-b000}, {path: models/ace}]
    outs: [{path: data/evidence, md5: ee.dir, size: 1}, {path: metrics/properties.json, md5: ff, size: 1}]
  report:
    deps: [{path: data/evidence}]
    outs: [{path: reports/report.html, md5: '00', size: 1}]
  manifest:
    outs: [{path: data/manifests, md5: '11.dir', size: 1}]
  shard@clinic-b000:
    deps: [{path: data/manifests/clinic-b000.jsonl}]
    outs: [{path: data/shards/clinic-b000, md5: '22.dir', size: 1}]
"""


@pytest.fixture(scope="session")
def clinic_project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project in which every stage but `report` has run on a folder of images, one of them twice.

    Nothing is labelled and there are no landmarks; params.yaml and dvc.lock still tell of the phantom.
    """
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("clinic")
        patch.setenv("ACE_SCRATCH", str(root / "scratch"))
        rng, images = np.random.default_rng(0), root / "images"
        images.mkdir()
        for number in range(40):
            draw_chest(rng)[0].save(images / f"{number:02d}.png")
        shutil.copy(images / "00.png", images / "40.png")
        rows = [f"{number:02d}.png,{number % 40},PA" for number in range(41)]
        (root / "labels.csv").write_text("\n".join(["path,patient,view", *rows]) + "\n")
        source = folder_params(images, root / "data/manifests" / f"{CLINIC}.jsonl", root / "labels.csv")
        shard = ShardParams.from_params({**SHARD, "max_quarantined_fraction": 0.1}, "shard")
        build_shards(CLINIC, source, GRID, shard, root / "data/shards" / CLINIC, execution=Here())
        write_model(root / "models/ace", seed=3)
        path = root / "models/ace/config.json"
        config = json.loads(path.read_text())
        config["params"]["batches"] = {CLINIC: {"mix": {"weight": 1.0, "mean": 0.5, "std": 0.25}}}
        path.write_text(json.dumps(config))
        tell_lineage(root, CLINIC)
        params = EvaluateParams.from_params({**EVALUATE, "batch": CLINIC}, "evaluate")
        write_imported(root / "models/imagenet")
        evaluate_at_once(params, encoders_of(root), paths_in(root))
        (root / "params.yaml").write_text(CLINIC_PARAMS)
        (root / "dvc.lock").write_text(CLINIC_LOCK)
        yield root
