"""Checks the tiny backbone on the tiny grid, so that processes that begin with this imported need not again."""

from ace.models.backbone import check_backbone
from tests.ace.pretrain.conftest import tiny_grid, tiny_params

check_backbone(tiny_params().backbone, tiny_grid().spec)
