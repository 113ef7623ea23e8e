"""The benchmark of a fine-tuning step compares steps that do the same work."""

import copy
import importlib

import pytest

from ace.downstream.images import as_input
from ace.downstream.registry import read_task
from tests.ace.pretrain.conftest import ROOT


def test_the_bare_step_has_the_loss_of_ours_on_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark = importlib.import_module("benchmarks.finetune")
    task, encoder = read_task("nih", ROOT), benchmark.open_encoder()
    batch = benchmark.random_batch(encoder, 2, num_labels=14)
    network = task.network(encoder).eval()
    images = as_input(batch.images, encoder.normalisation(benchmark.BATCH))
    bare = benchmark.bare_step(task, copy.deepcopy(network), images, batch.targets)()
    ours = benchmark.our_step(task, encoder, network, batch)().values["loss"]
    assert bare.item() == pytest.approx(ours, rel=1e-5)
