"""The network that exports hold: normalised images in, embedding and tokens out, for any batch size."""

import torch
from torch import Tensor, nn

from ace.embed.embedder import embedding_of
from ace.models.backbone import Backbone

_TRACED_BATCH = 2


class EmbeddingAndTokens(nn.Module):
    """The module computes what an exported network does."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding [B, D] and tokens [B, rows, cols, D] of normalised images [B, C, S, S]."""
        tokens = self.backbone(image)
        return embedding_of(tokens), tokens


def traced(network: EmbeddingAndTokens, size: tuple[int, int, int]) -> torch.export.ExportedProgram:
    """Follow the network as torch's exporter does; where in its code each step stands, with paths, is left out.

    Args:
        network: In evaluation mode.
        size: Channels, height and width of an input.
    """
    device = next(network.parameters()).device
    shapes = {"image": {0: torch.export.Dim("batch")}}
    # Strict: followed as bytecode, `len` of a batch stays a variable; run as Python it would become the number 2.
    example = torch.zeros(_TRACED_BATCH, *size, device=device)
    program = torch.export.export(network, (example,), dynamic_shapes=shapes, strict=True)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program
