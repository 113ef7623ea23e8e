"""Grad-CAM of networks that are known to look at something, and its figures against a known truth."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ace.downstream.localisation import area_shares, enlarged, grad_cam, overlaps, pointing_hits, region_of_boxes

T, PATCH_PX = 8, 4
SIZE_PX = T * PATCH_PX


class Patches(nn.Module):
    """Tokens of two planes that are the mean of each patch, one plane for each label's own sign."""

    def forward(self, images: Tensor) -> Tensor:
        return getattr(self, "scale", 1.0) * nn.functional.avg_pool2d(images, PATCH_PX).permute(0, 2, 3, 1)


class Classifier(nn.Module):
    """Label 0 counts the first plane, label 1 the second; each counts the other against itself."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Patches()

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images).mean((1, 2)) @ torch.tensor([[1.0, -1.0], [-1.0, 1.0]])


@pytest.fixture
def planted() -> tuple[Tensor, Tensor]:
    """Images of two lesions, one in each plane, and the masks of both."""
    masks = torch.zeros(1, 2, SIZE_PX, SIZE_PX, dtype=torch.bool)
    masks[0, 0, 4:12, 20:28] = True
    masks[0, 1, 20:28, 8:12] = True
    return masks.float(), masks


@pytest.mark.parametrize("label", [0, 1])
def test_a_planted_lesion_is_found_by_a_classifier_that_counts_it(planted: tuple[Tensor, Tensor], label: int) -> None:
    images, masks = planted
    network = Classifier().eval()
    heat = enlarged(grad_cam(network, network.backbone, images, torch.tensor([label])), SIZE_PX)
    region = masks[:, label]
    assert pointing_hits(heat, region).tolist() == [1]
    assert pointing_hits(heat, masks[:, 1 - label]).tolist() == [0]
    # Bilinear between patches: at half of its height the map has the outline of the patches.
    assert overlaps(heat, region, [0.5])[0].item() > 0.7
    # What speaks for the other label speaks against this one, and is cut off.
    assert heat[:, masks[0, 1 - label]].max() == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_only_the_part_behind_the_tokens_is_differentiated_and_nothing_stays_behind(mode: type) -> None:
    network = Classifier()
    network.backbone.register_parameter("scale", nn.Parameter(torch.ones(())))
    with mode():
        images = torch.rand(3, 2, SIZE_PX, SIZE_PX)
        before = network(images)
        heat = grad_cam(network, network.backbone, images, torch.tensor([0, 1, 0]))
        assert heat.shape == (3, T, T)
        assert not heat.requires_grad
        assert not torch.is_grad_enabled()
        assert torch.equal(network(images), before)
    assert network.backbone.scale.grad is None
    assert not network.backbone._forward_hooks
    assert not network.backbone._forward_pre_hooks


def test_each_image_is_asked_for_its_own_label(planted: tuple[Tensor, Tensor]) -> None:
    images, masks = planted
    network = Classifier()
    heat = grad_cam(network, network.backbone, images.expand(2, -1, -1, -1), torch.tensor([1, 0]))
    assert pointing_hits(enlarged(heat, SIZE_PX), masks[0, [1, 0]]).tolist() == [1, 1]


def test_a_constant_map_scores_chance(planted: tuple[Tensor, Tensor]) -> None:
    _, masks = planted
    regions = masks[0]
    shares = area_shares(regions)
    assert shares.tolist() == [64 / SIZE_PX**2, 32 / SIZE_PX**2]
    for level in (0.0, 0.3):
        assert torch.allclose(pointing_hits(torch.full((2, SIZE_PX, SIZE_PX), level), regions), shares)
    assert torch.allclose(pointing_hits(enlarged(torch.full((2, 5, 5), 0.3), SIZE_PX), regions), shares)
    for overlap in overlaps(torch.full((2, SIZE_PX, SIZE_PX), 0.3), regions, [0.5]):
        assert torch.allclose(overlap[:, 0], shares)
    for overlap in overlaps(torch.zeros(2, SIZE_PX, SIZE_PX), regions, [0.5]):
        assert not overlap.any()


def test_overlaps_of_a_hand_made_map_at_each_threshold() -> None:
    heat = torch.zeros(1, 4, 4)
    heat[0, 0] = torch.tensor([1.0, 0.8, 0.4, 0.1])
    region = torch.zeros(1, 4, 4, dtype=torch.bool)
    region[0, 0, :2] = True
    iou, iobb = overlaps(heat, region, [0.05, 0.3, 0.6, 0.9])
    assert iou[0].tolist() == pytest.approx([2 / 4, 2 / 3, 1, 1 / 2])
    assert iobb[0].tolist() == pytest.approx([2 / 4, 2 / 3, 1, 1])


def test_a_box_covers_the_pixels_whose_centres_it_holds_and_others_findings_do_not_count() -> None:
    box = {"label": "Nodule", "row0": 2.0, "col0": 4.4, "row1": 6.0, "col1": 15.6}
    other = {**box, "label": "Mass", "row0": 0.0}
    region = region_of_boxes([box, other], "Nodule", side=20)
    # Centres 2.5 to 5.5 lie in the rows, 4.5 to 15.5 in the columns.
    assert np.argwhere(region).min(0).tolist() == [2, 4]
    assert np.argwhere(region).max(0).tolist() == [5, 15]
    assert region.sum() == 4 * 12
    assert not region_of_boxes([other], "Nodule", side=20).any()
