"""Every named configuration: its sections agree, and its networks have the shapes of its grid (on the meta device)."""

import shutil
from functools import cache
from pathlib import Path

import pytest
import torch

from ace.config import Config, check_config, resolve, use
from ace.models.backbone import build_backbone
from ace.models.networks import Student, Teacher
from ace.pretrain.objective import branches_of
from shards.core.config import read_params
from shards.core.params import BatchParams, MeasuredParams, PhantomSourceParams
from shards.delivery.batches import read_batch, settings_of

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
PAPERS = {
    "ace_swin_b_cxr": ("swin_base_patch4_window7_224", 1, 14),
    "ace_vit_b_cxr": ("vit_base_patch32_224", 1, 14),
    "ace_swin_b_fundus": ("swin_base_patch4_window7_224", 3, 14),
    "ace_v2_swinv2_b_cxr": ("swinv2_base_window8_256", 1, 16),
}


def batches(values: Config) -> dict[str, BatchParams]:
    """The phantom with the settings of a configuration, as `use` leaves it."""
    source, measured = PhantomSourceParams(kind="phantom", dep="data/phantom"), MeasuredParams(mean=(0.5,), std=(0.2,))
    return {"phantom-b000": BatchParams(source=source, measured=measured, grid=values.grid, shard=values.shard)}


@cache
def config(name: str) -> Config:
    return Config.from_params(resolve(name, CONFIGS), name)


def networks(name: str) -> tuple[Student, Teacher]:
    """On the meta device: shapes without memory or arithmetic."""
    values = config(name)
    pretrain = values.pretrain
    with torch.device("meta"):
        student = Student(
            build_backbone(pretrain.backbone, values.grid.spec),
            branches=branches_of(pretrain),
            scales=[(scale.k, scale.l) for scale in values.grid.scales],
            global_head=pretrain.global_head,
            local_head=pretrain.local_head,
            composer=pretrain.composer,
            decomposer=pretrain.decomposer,
            logits=pretrain.matching_loss.logits,
        )
        return student, Teacher(student)


@pytest.mark.parametrize("name", NAMES)
def test_a_named_configuration_passes_every_check(name: str) -> None:
    check_config(config(name), batches(config(name)))


@pytest.mark.parametrize("name", NAMES)
def test_using_a_configuration_writes_all_of_it_but_the_batches(name: str, tmp_path: Path) -> None:
    shutil.copy(CONFIGS.parent / "params.yaml", tmp_path / "params.yaml")
    shutil.copytree(CONFIGS.parent / "batches", tmp_path / "batches")
    use(name, tmp_path / "params.yaml", CONFIGS)
    written, resolved = read_params(tmp_path / "params.yaml"), resolve(name, CONFIGS)
    batch = read_batch("phantom-b000", tmp_path)
    assert (batch.grid, batch.shard) == settings_of(written, tmp_path / "params.yaml")
    for section in ("batches", "mix"):
        assert written.pop(section) == read_params(CONFIGS.parent / "params.yaml")[section]
        resolved.pop(section)
    assert written == resolved


@pytest.mark.parametrize("name", NAMES)
def test_student_and_teacher_of_a_named_configuration_have_the_shapes_of_its_grid(name: str) -> None:
    values = config(name)
    spec, out = values.grid.spec, values.pretrain.global_head.out_dim
    tokens = spec.t**2
    student, teacher = networks(name)
    width = student.backbone.width
    with torch.device("meta"):
        crops = torch.empty(2, values.pretrain.backbone.in_channels, spec.crop_px, spec.crop_px)
        overlap = torch.ones(2, tokens, dtype=torch.bool)
        learned = teacher([crops, crops], [overlap, overlap], is_pair=True)
        assert learned.fine_tokens.shape == learned.coarse_tokens.shape == (2, tokens, width)
        assert learned.logits.shape == (2, 2, out)
        assert learned.features.shape == (4, width)
        for scale in spec.scales:
            found = student([crops, crops], [overlap, overlap], (scale.k, scale.l))
            assert found.decomposed.shape == (2, tokens * scale.k * scale.l, width)
            assert found.composed.shape == (2, tokens // (scale.k * scale.l), width)
            assert found.logits.shape == (2, 2, out)


@pytest.mark.parametrize("name", PAPERS)
def test_the_large_configurations_have_the_papers_sizes(name: str) -> None:
    values = config(name)
    backbone, head = values.pretrain.backbone, values.pretrain.global_head
    assert (backbone.name, backbone.in_channels, values.grid.t) == PAPERS[name]
    assert (values.grid.n, values.grid.cell_px) == (32, 32)
    assert (head.hidden_dim, head.bottleneck_dim, head.out_dim) == (2048, 256, 65536)


@pytest.mark.parametrize("name", ["nano", *PAPERS])
def test_the_method_of_these_configurations_is_the_papers(name: str) -> None:
    pretrain = config(name).pretrain
    weights, matching, loss = pretrain.loss_weights, pretrain.matching_loss, pretrain.global_loss
    assert (weights.global_, weights.decomposition, weights.composition, weights.removal) == (0.1, 0.5, 0.5, 0)
    assert (matching.alpha_decomposition, matching.alpha_composition) == (0.99, 0.9)
    assert (matching.logits.scale, matching.logits.bias, matching.logits.learnable) == (1 / 0.07, 0.0, False)
    assert (pretrain.composer, pretrain.decomposer, pretrain.local_head.form) == ("mlp", "mlp", "mlp")
    assert (loss.student_temperature, loss.teacher_temperature, loss.center_momentum) == (0.1, 0.04, 0.9)
    assert (pretrain.momentum, pretrain.momentum_end, pretrain.warmup_epochs) == (0.996, 1.0, 10)
    assert (pretrain.weight_decay, pretrain.weight_decay_end, pretrain.clip_norm) == (0.04, 0.4, 0.8)
    assert (pretrain.backbone.drop_path, pretrain.backbone.token_activation) == (0.1, "identity")
    assert pretrain.augment.erase.probability == 0
    assert pretrain.base_lr == (8e-3 if name == "nano" else 5e-4)
    assert pretrain.objective == ("ace_v2" if name == "ace_v2_swinv2_b_cxr" else "ace")


@pytest.mark.parametrize("name", PAPERS)
def test_the_large_configurations_are_for_gpus_and_save_memory_in_parts_that_divide_the_batch(name: str) -> None:
    pretrain = config(name).pretrain
    assert pretrain.precision == "bf16"
    assert pretrain.batch_size % (8 * pretrain.num_micro_batches) == 0


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("demo", "smoke")])
def test_a_configuration_says_at_its_head_what_it_is_and_what_it_needs(name: str) -> None:
    lines = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    head = "\n".join(line for line in lines if line.startswith("# "))
    assert head.startswith(lines[0])
    assert "GB" in head
