"""Names that moved to `ace.embed.encoder`, `ace.models.folder` and `ace.models.device`."""

from ace.embed.encoder import check_reference, load_encoder, reference_encoder, untrained_encoder
from ace.models.device import choose_device, default_device
from ace.models.folder import CONFIG, FORMAT_VERSION, IMPORTED, WEIGHTS, WHITENING, Which

__all__ = [
    "CONFIG",
    "FORMAT_VERSION",
    "IMPORTED",
    "WEIGHTS",
    "WHITENING",
    "Which",
    "check_reference",
    "choose_device",
    "default_device",
    "load_encoder",
    "reference_encoder",
    "untrained_encoder",
]
