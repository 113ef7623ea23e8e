"""The benchmark of a training step times the configuration that its flags ask for."""

import importlib
import sys
from types import ModuleType

import numpy as np
import pytest

from ace.config import Config, resolve
from tests.ace.pretrain.conftest import ROOT


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("benchmarks.step")


def config_of(step: ModuleType, monkeypatch: pytest.MonkeyPatch, *flags: str) -> Config:
    monkeypatch.setattr(sys, "argv", ["step.py", *flags])
    config: Config = step.benchmark_config(step.parse_arguments())
    return config


def demo() -> Config:
    return Config.from_params(resolve("demo", ROOT / "configs"), "demo")


def test_without_flags_it_is_the_demo_with_nothing_frozen_learnable_or_erased(
    step: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = demo().model_dump(by_alias=True)
    expected["pretrain"]["global_loss"]["frozen_last_layer_epochs"] = 0
    expected["pretrain"]["matching_loss"]["logits"]["learnable"] = False
    expected["pretrain"]["loss_weights"]["removal"] = 0
    expected["pretrain"]["augment"]["erase"]["probability"] = 0
    assert config_of(step, monkeypatch).model_dump(by_alias=True) == expected


def test_with_a_backbone_it_has_the_papers_sizes(step: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(step, monkeypatch, "--backbone", "vit_base_patch32_224", "--batch", "2")
    spec, pretrain = config.grid.spec, config.pretrain
    assert (spec.n, spec.t, spec.cell_px, spec.canvas_px, spec.crop_px) == (32, 14, 32, 1024, 448)
    assert [(scale.k, scale.l) for scale in spec.scales] == [(2, 2)]
    assert (pretrain.backbone.name, pretrain.backbone.in_channels, pretrain.batch_size) == (
        "vit_base_patch32_224",
        3,
        2,
    )
    assert pretrain.backbone.token_activation == "identity"
    assert pretrain.global_head.out_dim == 65536
    assert (pretrain.loss_weights.removal, pretrain.augment.erase.probability) == (0, 0)
    assert config.evaluate == demo().evaluate


@pytest.mark.parametrize("flags", [(), ("--backbone", "vit_base_patch32_224"), ("--config", "nano")])
def test_with_removal_the_term_weighs_something_and_something_is_erased(
    step: ModuleType, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    """Also where the configuration, or the paper, has neither."""
    config = config_of(step, monkeypatch, "--removal", "--batch", "2", *flags)
    assert config.pretrain.loss_weights.removal == 0.1
    assert config.pretrain.augment.erase.probability == demo().pretrain.augment.erase.probability == 0.5
    assert step.random_batch(config, np.random.default_rng(0)).erased is not None
