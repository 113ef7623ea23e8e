"""Start a new run's networks from nothing, from other people's backbone, or from a finished model of one's own.

None of it is resuming: step, optimiser and schedules begin anew.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ace.models.folder import HEADS, WEIGHTS, WHITENING
from ace.models.weights import load_initial_weights
from ace.pretrain.params import PretrainParams
from ace.pretrain.state import TrainState
from shards.core.errors import ConfigError
from shards.format.layout import sha256_of

FILES = (WEIGHTS["teacher"], WEIGHTS["student"], HEADS)


def start_files(folder: Path) -> dict[str, str]:
    """Name and sha256 of the finished model's weights, for the lineage of a run that starts from them.

    Raises:
        ConfigError: the folder is not a finished model.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"pretrain.start_from {folder}: no {', '.join(missing)}; expected a model folder that `python -m ace "
            "pretrain` wrote (for a backbone alone, set pretrain.backbone.weights)"
        )
    return {name: sha256_of(folder / name) for name in FILES}


def start_sha256(folder: Path) -> str:
    """Compute one digest of the model's weights: that of what `sha256sum` prints for the files in the order of `FILES`.

    Raises:
        ConfigError: the folder is not a finished model.
    """
    lines = [f"{digest}  {name}\n" for name, digest in start_files(folder).items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_start(params: PretrainParams, *, is_required: bool) -> None:
    """Check that the model to start with is the one that was meant.

    Args:
        params: Section `pretrain`.
        is_required: Whether its digest has to be given: DVC sees the path alone, and would call a stage up to date
            whose model has been replaced by another.

    Raises:
        ConfigError: it is another one, it is no finished model, or its digest is not given.
    """
    if params.start_from is None or (params.start_from_sha256 is None and not is_required):
        return
    found = start_sha256(Path(params.start_from))
    if found != params.start_from_sha256:
        raise ConfigError(
            f"pretrain.start_from {params.start_from}: its weights have the sha256 {found}, but "
            f"pretrain.start_from_sha256 is {params.start_from_sha256 or 'not set'}; get the model that was meant, or "
            "write the new sha256 if the change is wanted"
        )


def take_first_weights(state: TrainState, params: PretrainParams) -> str | None:
    """Put the weights that the parameters name into networks that took no step yet; the teacher begins as the student.

    Args:
        state: Changed in place.
        params: Section `pretrain`: `backbone.weights` or `start_from`, or neither.

    Returns:
        What became of every tensor; None where the networks start from random weights.

    Raises:
        ConfigError: the weights cannot be had or do not fit.
    """
    if params.start_from is not None:
        return start_from(state, Path(params.start_from))
    report = load_initial_weights(state.student.backbone, params.backbone)
    state.teacher.update(state.student, momentum=0.0)
    return None if report is None else str(report)


def start_from(state: TrainState, folder: Path) -> str:
    """Give student and teacher the finished model's weights; returns an account of every tensor.

    All of both backbones must fit. Of the heads, those of the same name and shape are taken; the others stay random, as
    where the new run has other branches or scales.

    Raises:
        ConfigError: the weights cannot be read or the backbones are of another architecture.
    """
    try:
        heads = load_file(folder / HEADS)
        lines = [f"START FROM {folder}, not resuming: optimiser, schedules and step begin anew"]
        for name, network in (("student", state.student), ("teacher", state.teacher)):
            backbone = load_file(folder / WEIGHTS[name])
            backbone.pop(WHITENING, None)  # fitted to the finished encoder; the new run fits its own
            given = {f"backbone.{key}": value for key, value in backbone.items()}
            given |= {key.removeprefix(f"{name}."): heads[key] for key in heads if key.startswith(f"{name}.")}
            lines += _take(name, network, given)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"pretrain.start_from {folder}: not readable: {error}") from None
    return "\n".join(lines)


def _take(name: str, network: nn.Module, given: Mapping[str, Tensor]) -> list[str]:
    own = network.state_dict()
    used = {key: value for key, value in given.items() if key in own and value.shape == own[key].shape}
    unused, random = sorted(given.keys() - used.keys()), sorted(own.keys() - used.keys())
    foreign = [key for key in (*unused, *random) if key.startswith("backbone.")]
    if foreign:
        raise ConfigError(
            f"pretrain.start_from: the {name}'s backbone has other tensors than this configuration's: "
            f"{', '.join(foreign[:6])}{' …' if len(foreign) > 6 else ''}; set pretrain.backbone to that of its "
            "config.json, or take what fits by pretrain.backbone.weights"
        )
    network.load_state_dict(used, strict=False)
    account = [f"  {name}: {len(used)} of {len(own)} tensors used"]
    account += [f"    unused: {', '.join(unused)}"] if unused else []
    return account + ([f"    left random: {', '.join(random)}"] if random else [])
