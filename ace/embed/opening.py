"""Open the encoders that the section `encoders` of params.yaml names, for the images of a shard set."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from ace.embed.encoder import Encoder, load_encoder, untrained_encoder
from ace.models.folder import WEIGHTS
from shards.core.config import Section
from shards.core.errors import ConfigError
from shards.core.grid import GridSpec
from shards.core.params import MeasuredParams
from shards.format.layout import sha256_of


class EncoderParams(Section):
    """Names a network that is measured: a model, and one of its networks."""

    model: str = Field(min_length=1)
    """Folder of the model, as `models/ace`; several encoders may be of one model."""
    network: Literal["teacher", "student", "best", "untrained"]
    """Network of the model; `untrained` has random weights of its architecture, drawn by `evaluate.seed`."""


def open_encoder(
    params: EncoderParams,
    seed: int,
    batch: str,
    spec: GridSpec,
    measured: MeasuredParams | None,
    device: str = "auto",
) -> Encoder:
    """Open an encoder to be shown the images of a shard set.

    Args:
        params: The encoder's section in `encoders`.
        seed: Seed of the weights, if `params.network` is `untrained`.
        batch: Name of the shard set.
        spec: Grid of the shard set.
        measured: The set's own mean and std, for a model that was not trained with it.
        device: `auto`, `cpu`, or one device as `cuda:0`.

    Raises:
        ConfigError: there is no such network, it was trained on another grid or frame, or its normalisation is not
            known.
    """
    if params.network == "untrained":
        encoder = untrained_encoder(Path(params.model), seed, device)
    else:
        encoder = load_encoder(Path(params.model), params.network, device)
    if not encoder.is_imported:  # of an imported model nothing says how its images were framed
        _check_trim(encoder, batch, spec)
    own = {} if measured is None else {batch: measured.normalisation(encoder.in_channels)}
    encoder = replace(encoder, given=own).on_grid(spec, batch)
    encoder.normalisation(batch)  # is known or given, or refused here before any work
    return encoder


def weights_sha256(params: EncoderParams) -> str | None:
    """Return the sha256 of the file of weights; None for random ones."""
    return None if params.network == "untrained" else sha256_of(Path(params.model) / WEIGHTS[params.network])


def _check_trim(encoder: Encoder, batch: str, spec: GridSpec) -> None:
    if encoder.spec.trim_level != spec.trim_level:
        ours, found = ("null" if own.trim_level is None else own.trim_level for own in (encoder.spec, spec))
        raise ConfigError(
            f"the model was trained on images with grid.trim_level {ours}, but {batch} was built with {found}: "
            "its canvases frame the anatomy otherwise; build the batch with the model's trim_level, or train again"
        )
