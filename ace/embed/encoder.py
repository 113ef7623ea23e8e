"""A trained backbone read back from a model folder: what evaluation, embedding and export start from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ace.models.backbone import Backbone, build_backbone
from ace.models.device import choose_device
from ace.models.folder import CONFIG, IMPORTED, WEIGHTS, WHITENING, Which
from ace.models.model_config import ImportedConfig, ModelConfig, read_config
from ace.models.params import Precision
from ace.models.precision import finished_precision, placed
from shards.core.errors import ConfigError
from shards.core.grid import GridSpec
from shards.core.normalisation import Normalisation
from shards.core.params import MixParams


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A backbone in evaluation mode with what its input must look like.

    Attributes:
        backbone: Normalised images [B, C, S, S] to tokens [B, t, t, D] after its last norm.
        spec: The grid whose crops it is shown; they are resampled where S is not `spec.crop_px`.
        in_channels: Channels of an image, 1 or 3.
        precision: What forward passes are computed in.
        config: config.json of the model; None for a backbone that comes from no folder.
        given: Normalisations of batches that config.json does not have, by their names.
    """

    backbone: Backbone
    spec: GridSpec
    in_channels: int
    precision: Precision
    config: ModelConfig | None = None
    given: Mapping[str, Normalisation] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Return the device that holds the weights."""
        return next(self.backbone.parameters()).device

    @property
    def input_px(self) -> int:
        """Side S of the images that the backbone takes."""
        return self.backbone.crop_px

    @property
    def is_imported(self) -> bool:
        """Tell whether others trained it."""
        return isinstance(self.config, ImportedConfig)

    @property
    def mixes(self) -> Mapping[str, MixParams]:
        """Batches that config.json knows, with their parts in the training; an imported model has one for all."""
        return {} if self.config is None else self.config.mixes

    def normalisation(self, batch: str) -> Normalisation:
        """Return the normalisation that training used for a batch, or the one given; an imported model has one for all.

        Raises:
            ConfigError: the model has not seen the batch and none is given, or it is one of another number of channels.
        """
        if self.is_imported:
            batch = IMPORTED
        if batch in self.mixes:
            found = Normalisation(self.mixes[batch].mean, self.mixes[batch].std)
        elif batch in self.given:
            found = self.given[batch]
        else:
            raise ConfigError(
                f"batch '{batch}' is unknown to this model; it was trained with {sorted(self.mixes)}. Register it "
                "(`python -m shards register`, with --weight 0 if it is only to be measured on), which writes its mean "
                "and std to batches/NAME.yaml"
            )
        found.per_channel(self.in_channels, f"mix.{batch}")
        return found

    def on_grid(self, spec: GridSpec, batch: str) -> Self:
        """Return the encoder as it is shown the crops of a batch's grid.

        An imported one takes the crops of any grid with as many tokens a side; one that was trained here takes those of
        its own grid.

        Raises:
            ConfigError: it would not give one token for each cell of a crop.
        """
        if self.is_imported:
            if self.spec.t != spec.t:
                raise ConfigError(
                    f"the imported model gives {self.spec.t}×{self.spec.t} tokens, and crops of {batch} have "
                    f"{spec.t}×{spec.t} cells; import its weights again for this grid"
                )
            return replace(self, spec=spec)
        trained, found = ((own.n, own.cell_px, own.t) for own in (self.spec, spec))
        if trained != found:
            raise ConfigError(
                f"the model was trained on a grid (n, cell_px, t) = {trained}, but {batch} has {found}; "
                "evaluate on a batch with the model's grid, or train again"
            )
        return self


def load_encoder(model_dir: Path, which: Which = "teacher", device: str = "auto") -> Encoder:
    """Load the trained encoder.

    Args:
        model_dir: A folder that `python -m ace pretrain` wrote.
        which: The network; the teacher is the one to use, or the best one where a probe watched the training.
        device: As for `choose_device`.

    Raises:
        ConfigError: the folder is not a model, is of another format version, or its weights do not fit; it has no
            best teacher; there is no such device.
    """
    place = choose_device(device)
    config = read_config(model_dir)
    backbone = build_backbone(config.backbone, config.params.grid)
    path = model_dir / WEIGHTS[which]
    if which == "best" and (isinstance(config, ImportedConfig) or config.best is None):
        raise ConfigError(
            f"{model_dir}: has no best teacher, which the probe would have chosen while the model was trained "
            "(pretrain.probe.every_epochs above 0); take which='teacher'"
        )
    if not path.is_file():
        has = [network for network, name in WEIGHTS.items() if (model_dir / name).is_file()]
        raise ConfigError(f"{path}: not found; the model has {' and '.join(has) or 'no encoder'}")
    try:
        state = load_file(path)
        if WHITENING in state:
            backbone.whiten(state[WHITENING])
        backbone.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ConfigError(f"{path}: not the weights that {CONFIG} describes: {error}") from None
    return _finished(backbone, config, place)


def untrained_encoder(model_dir: Path, seed: int, device: str = "auto") -> Encoder:
    """Build an encoder of the same architecture with random weights, whatever initial weights the trained one had.

    Args:
        model_dir: Folder of the trained one.
        seed: Decides the weights.
        device: As for `choose_device`.

    Raises:
        ConfigError: as for `load_encoder`.
    """
    place = choose_device(device)
    config = read_config(model_dir)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = build_backbone(config.backbone, config.params.grid)
    return _finished(backbone, config, place)


def _finished(backbone: Backbone, config: ModelConfig, device: torch.device) -> Encoder:
    """Place the encoder on its device; it computes as it was trained if the device can, else in fp32."""
    precision = finished_precision(config.params.pretrain.precision, device)
    network = placed(backbone, precision, device).eval()
    return Encoder(
        backbone=network,
        spec=config.params.grid,
        in_channels=config.backbone.in_channels,
        precision=precision,
        config=config,
    )
