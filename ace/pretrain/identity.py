"""Gather what a pretraining depends on: two runs of one identity end with the same weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ace.engine.run import RunIdentity, code_sha256, recorded_versions
from ace.pretrain.params import PretrainParams
from ace.pretrain.start import start_files
from shards.core.params import GridParams, MixParams
from shards.reading.order import TarWindow, cache_window
from shards.reading.reader import ShardIndex

CODE = (
    "ace/data",
    "ace/embed",
    "ace/engine",
    "ace/geometry",
    "ace/losses",
    "ace/models",
    "ace/pretrain",
    "shards/core",
    "shards/format",
    "shards/reading",
    "shards/runtime",
    "shards/store",
)
"""Modules and folders of modules that decide a training's result: those on which the stage `pretrain` depends."""
NOT_DECISIVE = {
    # What it stands for is in the identity itself, as `start`.
    "start_from_sha256",
    "accept_mixed_images",
    "device",
    "num_workers",
    "log_every_steps",
    "checkpoint_every_s",
    "keep_checkpoints",
    "on_nonfinite",
    "max_skipped_steps",
    "collapse",
}
"""Fields of the section that may change without changing the weights a finished run ends with."""
NEARLY_DECISIVE = tuple(
    f"pretrain.{name}" for name in ("num_micro_batches", "checkpoint_activations", "compile", "augment.where", "probe")
)
"""Fields of the section that may change while a run goes on, as on a smaller GPU: the weights are the same but for
rounding, and `probe` chooses the best checkpoint alone. `run.json` keeps what each part was trained with."""
NEUTRAL: Mapping[str, Any] = {
    "pretrain.whitening": None,
    "pretrain.loss_weights.removal": 0.0,
    "pretrain.augment.erase.fills.tissue": 0.0,
    "grid.trim_level": None,
}
"""Dotted keys that later versions added → the value with which a run of an earlier one, which has none, goes on."""


def identity_of(
    params: PretrainParams, grid: GridParams, mix: Mapping[str, MixParams], indexes: Mapping[str, ShardIndex]
) -> RunIdentity:
    """Gather parameters, grid, mix and content of the shards, code and libraries."""
    values = {
        "pretrain": params.model_dump(mode="json", exclude=NOT_DECISIVE),
        "grid": grid.model_dump(mode="json"),
        "mix": {name: mix[name].model_dump(mode="json") for name in indexes},
        "start": {} if params.start_from is None else start_files(Path(params.start_from)),
        "indexes": {name: index.fingerprint for name, index in indexes.items()},
        "window_tars": None if (window := _window(mix, indexes)) is None else window.num_tars,
        "code": code_sha256(CODE),
        "versions": recorded_versions(),
    }
    return RunIdentity(stage="pretrain", values=values, nearly_decisive=NEARLY_DECISIVE, neutral=NEUTRAL)


def _window(mix: Mapping[str, MixParams], indexes: Mapping[str, ShardIndex]) -> TarWindow | None:
    """Decides the order, and follows from the size of the cache, which other machines or a later run may have other."""
    rows = [index.select("train") for index in indexes.values()]
    return cache_window(list(indexes.values()), rows, [mix[name].weight for name in indexes])
