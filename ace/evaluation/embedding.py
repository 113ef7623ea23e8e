"""Names that moved to `ace.embed.embedder`."""

from ace.embed.embedder import Embedder, Image, pool, unit
from ace.embed.encoder import Encoder

__all__ = ["Embedder", "Encoder", "Image", "pool", "unit"]
