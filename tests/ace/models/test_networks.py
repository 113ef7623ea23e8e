import itertools
from dataclasses import fields

import pytest
import torch
from torch import nn

from ace.models.backbone import build_backbone
from ace.models.networks import Branches, Student, Teacher, overlap_mean
from ace.models.params import BackboneParams, GlobalHeadParams, LocalHeadParams, LogitParams
from shards.core.grid import GridSpec, Scale

T, CELL_PX, WIDTH = 4, 16, 24
SPEC = GridSpec(
    n=8,
    cell_px=CELL_PX,
    t=T,
    scales=(Scale(2, 2, 1.0), Scale(1, 2, 1.0), Scale(1, 1, 1.0)),
    min_overlap=0.0,
    min_jitter_area=0.85,
)
ALL = Branches(global_=True, decomposition=True, composition=True, removal=True)
VIT = {"embed_dim": WIDTH, "depth": 2, "num_heads": 2, "class_token": False}
SWIN = {"embed_dim": 6, "depths": [1, 1, 1], "num_heads": [1, 2, 4], "window_size": 4}


def student(branches: Branches = ALL, *, drop_path: float = 0.0, composer: str = "mlp", swin: bool = False) -> Student:
    torch.manual_seed(0)
    name, model_args = ("swin_tiny_patch4_window7_224", SWIN) if swin else ("vit_tiny_patch16_224", VIT)
    values = {"weights": None, "name": name, "model_args": model_args, "in_channels": 1, "drop_path": drop_path}
    return Student(
        build_backbone(BackboneParams.from_params({**values, "token_activation": "identity"}, "backbone"), SPEC),
        branches=branches,
        scales=[(scale.k, scale.l) for scale in SPEC.scales],
        global_head=GlobalHeadParams(hidden_dim=16, bottleneck_dim=8, out_dim=12),
        local_head=LocalHeadParams(form="mlp", hidden_dim=16),
        composer=composer,
        decomposer="mlp",
        logits=LogitParams(scale=10.0, bias=-5.0, learnable=True),
    )


def inputs(seed: int = 1, num_crops: int = 2) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Crops, and which of their tokens are pooled."""
    generator = torch.Generator().manual_seed(seed)
    crops = [torch.randn(3, 1, T * CELL_PX, T * CELL_PX, generator=generator) for _ in range(num_crops)]
    return crops, [torch.rand(3, T * T, generator=generator) > 0.5 for _ in range(num_crops)]


@pytest.mark.parametrize(("k", "l"), [(2, 2), (1, 2), (1, 1)])
def test_tokens_have_norm_1_and_the_shapes_of_the_scale(k: int, l: int) -> None:
    out = student()(*inputs(), (k, l))
    assert out.decomposed.shape == (3, k * l * T * T, WIDTH)
    assert out.composed.shape == (3, T * T // (k * l), WIDTH)
    for tokens in (out.decomposed, out.composed):
        torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(tokens.shape[:2]))


def test_decomposition_reads_the_coarse_crop_and_composition_the_fine_one() -> None:
    net = student().eval()
    (coarse, fine), overlaps = inputs()
    before = net([coarse, fine], overlaps, (2, 2))
    other_coarse = net([coarse + 1.0, fine], overlaps, (2, 2))
    other_fine = net([coarse, fine.flip(-1)], overlaps, (2, 2))
    torch.testing.assert_close(other_coarse.composed, before.composed)
    torch.testing.assert_close(other_fine.decomposed, before.decomposed)
    assert not torch.allclose(other_coarse.decomposed, before.decomposed)
    assert not torch.allclose(other_fine.composed, before.composed)


@pytest.mark.parametrize("composer", ["mlp", "mean"])
@pytest.mark.parametrize(("k", "l"), [(2, 2), (1, 2), (1, 1)])
def test_every_parameter_gets_a_gradient_in_a_step_of_any_scale(k: int, l: int, composer: str) -> None:
    net = student(composer=composer)
    out = net(*inputs(), (k, l))
    logits = [net.decomposition_logits(), net.composition_logits()]
    parts = [out.decomposed, out.composed, out.logits, *itertools.chain(*logits)]
    torch.stack([(part * torch.randn_like(part)).sum() for part in parts]).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        group, _, scale = name.partition(".")
        if group in ("composers", "decomposers"):
            assert bool(parameter.grad.count_nonzero()) == scale.startswith(f"{k}x{l}."), name


@pytest.mark.parametrize(
    "branches",
    [
        ALL,
        Branches(global_=True, decomposition=True, composition=True),
        Branches(global_=True, decomposition=False, composition=True),
        Branches(global_=True, decomposition=False, composition=False),
    ],
)
def test_every_parameter_gets_a_gradient_in_a_step_of_views(branches: Branches) -> None:
    net = student(branches)
    out = net(*inputs(num_crops=3), None)
    assert out.logits.shape == (3, 3, 12)
    assert out.decomposed is out.composed is None
    (out.logits * torch.randn_like(out.logits)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.count_nonzero()) == (name.split(".")[0] in ("backbone", "global_head")), name


def test_student_and_teacher_see_a_view_as_they_see_a_crop() -> None:
    net = student().eval()
    crops, pooled = inputs(num_crops=4)
    views, taught = net(crops, pooled, None), Teacher(net)(crops[:2], pooled[:2], is_pair=False)
    pair = net(crops[:2], pooled[:2], (2, 2))
    torch.testing.assert_close(views.logits[:2], pair.logits)
    torch.testing.assert_close(taught.logits, pair.logits)
    assert taught.fine_tokens is taught.coarse_tokens is None
    assert taught.features.shape == (6, WIDTH)


@pytest.mark.parametrize("flags", [f for f in itertools.product([True, False], repeat=4) if any(f[:3])])
def test_only_what_a_branch_needs_is_built_and_encoded(flags: tuple[bool, bool, bool, bool]) -> None:
    branches = Branches(**dict(zip((item.name for item in fields(Branches)), flags, strict=True)))
    net = student(branches)
    teacher = Teacher(net)
    seen: dict[str, int] = {}
    for name, backbone in (("student", net.backbone), ("teacher", teacher.backbone)):
        backbone.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: len(args[0]) // 3}))
    out, taught = net(*inputs(), (2, 2)), teacher(*inputs(), is_pair=True)
    both = branches.global_ or branches.removal or (branches.decomposition and branches.composition)
    assert seen == {"student": 2 if both else 1, "teacher": 2 if both else 1}
    assert (out.decomposed is not None) == (taught.fine_tokens is not None) == branches.decomposition
    assert (out.composed is not None) == (taught.coarse_tokens is not None) == branches.composition
    assert (out.logits is not None) == (taught.logits is not None) == branches.global_
    assert (out.tokens is not None) == (taught.tokens is not None) == branches.removal
    assert (net.global_head is not None) == branches.global_
    assert taught.features.shape == (3 * seen["teacher"], WIDTH)
    outputs = [x for x in (out.decomposed, out.composed, out.logits) if x is not None]
    torch.stack([x.square().sum() + x.sum() for x in outputs]).sum().backward()
    without = [n for n, p in net.named_parameters() if p.grad is None]
    assert all(name.partition(".")[0] in ("decomposition_logits", "composition_logits") for name in without)


def test_tokens_for_removal_are_the_backbones_of_each_crop_row_major() -> None:
    net = student().eval()
    crops, overlaps = inputs(num_crops=3)
    with torch.no_grad():
        for out in (net(crops, overlaps, None), Teacher(net)(crops, overlaps, is_pair=False)):
            assert out.tokens.shape == (3, 3, T * T, WIDTH)
            for found, crop in zip(out.tokens, crops, strict=True):
                grid = net.backbone(crop)
                torch.testing.assert_close(found, torch.cat([grid[:, row] for row in range(T)], 1))
        for out in (net(crops[:2], overlaps[:2], (2, 2)), Teacher(net)(crops[:2], overlaps[:2], is_pair=True)):
            torch.testing.assert_close(out.tokens[0], net.backbone(crops[0]).flatten(1, 2))
            torch.testing.assert_close(out.tokens[1], net.backbone(crops[1]).flatten(1, 2))


def test_a_fresh_teacher_sees_what_the_student_sees() -> None:
    net = student().eval()
    out, taught = net(*inputs(), (1, 1)), Teacher(net)(*inputs(), is_pair=True)
    torch.testing.assert_close(taught.coarse_tokens, out.decomposed)
    torch.testing.assert_close(taught.fine_tokens, out.composed)
    torch.testing.assert_close(taught.logits, out.logits)
    assert torch.equal(taught.fine_logits, taught.logits[1])


def test_no_gradient_reaches_the_teacher() -> None:
    net = student()
    teacher = Teacher(net)
    crops, overlaps = inputs()
    out = net(crops, overlaps, (2, 2))
    taught = teacher([crop.requires_grad_() for crop in crops], overlaps, is_pair=True)
    (out.decomposed.mean() * taught.fine_tokens.mean() + (out.logits * taught.logits).sum()).backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert not any(value.requires_grad for value in vars(taught).values())


def test_stochastic_depth_is_on_in_the_student_and_off_in_the_teacher() -> None:
    net = student(drop_path=0.9)
    teacher = Teacher(net)
    net.train()
    teacher.train()
    first, second = (net(*inputs(), (2, 2)).decomposed for _ in range(2))
    assert not torch.allclose(first, second)
    first, second = (teacher(*inputs(), is_pair=True).fine_tokens for _ in range(2))
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    assert not any(module.training for module in teacher.modules())


def moved(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
        for buffer in module.buffers():
            buffer.add_(1)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.996, 1.0])
def test_the_teacher_moves_to_the_weighted_mean_and_copies_buffers(momentum: float) -> None:
    net = student(swin=True)
    teacher = Teacher(net)
    moved(net)
    before = {name: parameter.clone() for name, parameter in teacher.named_parameters()}
    teacher.update(net, momentum)
    theirs, buffers = dict(net.named_parameters()), dict(net.named_buffers())
    for name, parameter in teacher.named_parameters():
        expected = momentum * before[name].double() + (1 - momentum) * theirs[name].double()
        tolerance = 0.0 if momentum in (0.0, 1.0) else 1e-6
        torch.testing.assert_close(parameter.double(), expected, atol=tolerance, rtol=0)
    copied = dict(teacher.named_buffers())
    assert any(not buffer.is_floating_point() for buffer in copied.values()), "Swin has integer buffers"
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in copied.items())


def test_the_teacher_has_its_own_copy_of_the_students_backbone_and_heads_and_nothing_else() -> None:
    net = student()
    teacher = Teacher(net)
    ours = {
        name for name, _ in net.named_parameters() if name.split(".")[0] in ("backbone", "global_head", "local_head")
    }
    assert {name for name, _ in teacher.named_parameters()} == ours
    storages = {parameter.data_ptr() for parameter in net.parameters()}
    assert not storages & {parameter.data_ptr() for parameter in teacher.parameters()}


def test_pooling_averages_the_overlap_and_an_empty_overlap_gives_0() -> None:
    tokens = torch.randn(2, 2, 2, 5)
    overlap = torch.tensor([[True, False, False, True], [False] * 4])
    pooled = overlap_mean(tokens, overlap)
    torch.testing.assert_close(pooled[0], (tokens[0, 0, 0] + tokens[0, 1, 1]) / 2)
    assert pooled[1].count_nonzero() == 0


def test_an_empty_overlap_gives_finite_outputs_and_gradients() -> None:
    net = student()
    nothing = torch.zeros(3, T * T, dtype=torch.bool)
    out = net(inputs()[0], [nothing, nothing], (2, 2))
    (out.logits.square().sum() + out.decomposed.sum()).backward()
    assert torch.isfinite(out.logits).all()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
