"""A trained backbone read back from a model folder: what evaluation, embedding and export start from."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ace.models.backbone import Backbone, build_backbone, check_backbone
from ace.models.params import BackboneParams, ReferenceParams
from ace.models.precision import Precision, finished_precision, placed
from ace.models.weights import check_weights, load_initial_weights
from shards.errors import ConfigError
from shards.grid import GridSpec
from shards.normalisation import Normalisation

FORMAT_VERSION = 4
READ_VERSIONS = (3, FORMAT_VERSION)
"""Models of version 3 have no whitening."""
CONFIG = "config.json"
IMPORTED = "imported"
"""`origin` in config.json of a model that others trained, and the name of the one normalisation that it has."""
WHITENING = "whitening.weight"
"""Name of the map of tokens among a finished backbone's tensors; models trained without it have none."""
Which = Literal["teacher", "student", "best"]
"""`best` is the teacher at the step at which the probe scored it highest; without a probe there is none."""
WEIGHTS = {
    "teacher": "teacher_backbone.safetensors",
    "student": "student_backbone.safetensors",
    "best": "best_teacher_backbone.safetensors",
}


@dataclass(frozen=True)
class Encoder:
    """A backbone in evaluation mode with what its input must look like.

    Attributes:
        backbone: Normalised crops [B, C, S, S] to tokens [B, t, t, D] after its last norm.
        spec: The grid it was trained on; S is `spec.crop_px`.
        config: config.json of the model.
        given: The normalisation of batches that the model was not trained with, by their names.
    """

    backbone: Backbone
    spec: GridSpec
    config: Mapping[str, Any]
    given: Mapping[str, Normalisation] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.backbone.parameters()).device

    @property
    def in_channels(self) -> int:
        """Channels of an input crop, 1 or 3."""
        return int(self.config["params"]["pretrain"]["backbone"]["in_channels"])

    @property
    def precision(self) -> Precision:
        """Return the precision of forward passes: the training's on an accelerator, fp32 on the CPU and if imported."""
        return finished_precision(_trained_precision(self.config), self.device)

    def normalisation(self, batch: str) -> Normalisation:
        """Return the normalisation that training used for a batch, or the one given; an imported model has one for all.

        Raises:
            ConfigError: the model has not seen the batch and none is given, or it is one of another number of channels.
        """
        mixes = self.config["params"]["batches"]
        if self.config.get("origin") == IMPORTED:
            batch = IMPORTED
        if batch in mixes:
            found = Normalisation.of(mixes[batch]["mix"]["mean"], mixes[batch]["mix"]["std"])
        elif batch in self.given:
            found = self.given[batch]
        else:
            raise ConfigError(
                f"batch '{batch}' is unknown to this model; it was trained with {sorted(mixes)}. Register it "
                "(`python -m shards register`, with --weight 0 if it is only to be measured on), which writes its mean "
                "and std to batches/NAME.yaml"
            )
        found.per_channel(self.in_channels, f"mix.{batch}")
        return found


def load_encoder(model_dir: Path, which: Which = "teacher", device: str = "auto") -> Encoder:
    """The trained encoder.

    Args:
        model_dir: A folder that `python -m ace pretrain` wrote.
        which: The network; the teacher is the one to use, or the best one where a probe watched the training.
        device: As for `choose_device`.

    Raises:
        ConfigError: the folder is not a model, is of another format version, or its weights do not fit; it has no
            best teacher; there is no such device.
    """
    place = choose_device(device)
    config, backbone, spec = _empty_encoder(model_dir)
    path = model_dir / WEIGHTS[which]
    if which == "best" and config.get("best") is None:
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
    return Encoder(_placed(backbone, config, place), spec, config)


def untrained_encoder(model_dir: Path, seed: int) -> Encoder:
    """An encoder of the same architecture with random weights, whatever initial weights the trained one had.

    Raises:
        ConfigError: as for `load_encoder`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config, backbone, spec = _empty_encoder(model_dir)
    return Encoder(_placed(backbone, config, default_device()), spec, config)


@dataclass(frozen=True)
class ReferenceEncoder:
    """An encoder that others trained, in evaluation mode, with what its input must look like.

    Attributes:
        backbone: Normalised crops [B, C, S, S] to tokens [B, t, t, D].
        spec: The grid whose crops it is shown; S is `spec.crop_px`.
        in_channels: Channels of an input crop, 1 or 3.
        published: What it was published with, for pixels in [0, 1].
        precision: What forward passes are computed in; what it was trained in is not known.
    """

    backbone: Backbone
    spec: GridSpec
    in_channels: int
    published: Normalisation
    precision: Precision = "fp32"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.backbone.parameters()).device

    def normalisation(self, batch: str) -> Normalisation:
        """Return the normalisation that the encoder was published with, which is the same for every batch."""
        return self.published


def check_reference(params: ReferenceParams, spec: GridSpec) -> None:
    """Check that a published encoder has the grid's tokens and that its weights can be had, without building it.

    Raises:
        ConfigError: its token grid is not t×t, timm refuses the arguments, or the weights are missing or changed.
    """
    try:
        check_backbone(params.backbone, spec)
        check_weights(params.backbone)
    except ConfigError as error:
        raise ConfigError(
            f"evaluate.reference: {error}; or set evaluate.reference to null, which leaves the published encoder out"
        ) from None


def reference_encoder(params: ReferenceParams, spec: GridSpec) -> ReferenceEncoder:
    """Build the published encoder, untouched, for crops of the grid.

    Args:
        params: The section `evaluate.reference`.
        spec: Grid of the images it will be shown.

    Raises:
        ConfigError: as for `check_reference`; the weights do not give every tensor of the encoder.
    """
    check_reference(params, spec)
    with torch.random.fork_rng(devices=[]):  # what is random at first is replaced
        backbone = build_backbone(params.backbone, spec)
    report = load_initial_weights(backbone, params.backbone)
    if report is None or report.missing:
        raise ConfigError(
            f"evaluate.reference: the weights leave part of {params.name} random, so it is not the published "
            f"encoder; choose weights of this architecture\n{report}"
        )
    published = Normalisation(params.mean, params.std)
    return ReferenceEncoder(backbone.to(default_device()).eval(), spec, params.in_channels, published)


def default_device() -> torch.device:
    """The accelerator of this machine, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_device(name: str) -> torch.device:
    """The device of a name: `auto` (the accelerator, if there is one), or torch's, as `cpu` or `cuda:0`.

    Raises:
        ConfigError: torch knows no such device, or this machine has none.
    """
    if name == "auto":
        return default_device()
    try:
        place = torch.empty(1, device=name)
        place.cpu()  # refused by devices that hold no numbers, as meta
        return place.device
    # What torch raises for a device that is not there differs from backend to backend.
    except Exception as error:
        reason = re.split(r"\.\s", str(error), maxsplit=1)[0].rstrip(".")
        raise ConfigError(f"device '{name}': {reason}; use auto, cpu or a device of this machine, as cuda:0") from None


def _trained_precision(config: Mapping[str, Any]) -> Precision:
    precision: Precision = config["params"]["pretrain"].get("precision", "fp32")
    return precision


def _placed(backbone: Backbone, config: Mapping[str, Any], device: torch.device) -> Backbone:
    """The finished backbone where it is used, in evaluation mode."""
    return placed(backbone, finished_precision(_trained_precision(config), device), device).eval()


def _empty_encoder(model_dir: Path) -> tuple[dict[str, Any], Backbone, GridSpec]:
    path = model_dir / CONFIG
    if not path.is_file():
        raise ConfigError(f"{path}: not found; {model_dir} should be a model that `python -m ace pretrain` wrote")
    try:
        config: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
        found = config.get("format_version")
        if found not in READ_VERSIONS:
            raise ConfigError(
                f"{path}: format_version {found}, this release reads {' and '.join(map(str, READ_VERSIONS))}; use "
                "the release that wrote the model (`versions` and dvc.lock say what it ran with), or train or import "
                "it again"
            )
        spec = GridSpec.from_json(config["params"]["grid"])
        params = BackboneParams.from_params(config["params"]["pretrain"]["backbone"], f"{path}: backbone")
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path}: damaged ({type(error).__name__}: {error}); restore the folder, as by `dvc checkout`"
        ) from None
    return config, build_backbone(params, spec), spec
