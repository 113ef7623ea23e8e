"""Anatomically Consistent Embeddings (ACE): learning an image encoder by composition and decomposition.

import ace
model = ace.load("cxr-small")  # comes with the package; or the folder of a model that you trained
out = model.embed(image)  # out.embedding [D], out.tokens [rows, cols, D]
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ace.embed.preprocessing import Choice
    from ace.inference.embedder import EmbeddingModel
    from ace.models.folder import Which

__all__ = ["load"]


def load(
    model: str | Path,
    *,
    which: "Which" = "teacher",
    device: str = "auto",
    normalisation: "Choice" = None,
) -> "EmbeddingModel":
    """Load a trained model, ready to embed images. Nothing is downloaded.

    Args:
        model: A folder that `python -m ace pretrain` wrote, or the name of a model that comes with the package, as
            `python -m ace models` lists them. A folder that exists wins.
        which: `teacher`, the encoder to use, `student`, or `best`: the teacher when the probe scored it highest.
        device: `auto` (the accelerator, if there is one), `cpu`, or another of torch's, as `cuda:0`.
        normalisation: A batch that the model was trained with, whose mean and standard deviation are to be used, or
            (mean, std) of the pixels in [0, 1], each one number or one for each channel. Needed only where the batches
            it was trained with differ in them.

    Raises:
        ConfigError: there is no such model, its files are damaged, the device is not there, or the normalisation is
            open.
    """
    # torch is imported here and not with the package: commands that only print or check stay quick.
    from ace.inference.embedder import load_model

    return load_model(model, which=which, device=device, normalisation=normalisation)
