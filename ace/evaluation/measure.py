"""The stage `measure`: one encoder answers what every property asks; everything that needs a network is here."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ace.embed.embedder import Embedder
from ace.embed.encoder import Encoder
from ace.embed.opening import EncoderParams, open_encoder, weights_sha256
from ace.evaluation.params import EvaluateParams
from ace.evaluation.setting import StagePaths, read_setting
from ace.models.model_config import ImportedConfig
from ace.models.precision import accelerator_settings
from ace.models.weights import tensors_sha256
from ace.properties.base import Answers, Measurement, NotMeasured, Setting
from ace.protocol.features import CanvasView, Features, write_features
from shards.core.params import MeasuredParams
from shards.runtime.atomic import atomic_directory, atomic_path, write_text

ANSWERS = "answers.json"


def measure(
    name: str,
    encoder_params: EncoderParams,
    params: EvaluateParams,
    paths: StagePaths,
    measured: MeasuredParams | None = None,
) -> None:
    """Ask one encoder, and write its answers and dense tokens below `paths.answers`, in a folder that appears whole.

    Args:
        name: Of the encoder.
        encoder_params: Its section in `encoders`.
        params: The section `evaluate`.
        paths: Where the stages read and write.
        measured: The batch's own mean and std, for a model that was not trained with it.

    Raises:
        ConfigError: there is no such network, it was trained on another grid or frame, its normalisation is not known,
            or too few patients are there.
    """
    setting = read_setting(params, paths)
    plans = plan_all(params, setting)
    encoder = open_encoder(encoder_params, params.seed, setting.cohort.batch, setting.cohort.spec, measured)
    embedder = Embedder(
        encoder=encoder, batch=setting.cohort.batch, images_per_forward=params.images_per_forward, name=name
    )
    measurements = {key: plan for key, plan in plans.items() if isinstance(plan, Measurement)}
    with atomic_directory(paths.answers / name) as fresh, accelerator_settings(encoder.precision, encoder.device):
        features = _write_features(fresh, embedder, setting, measurements)
        for key, plan in measurements.items():
            write_arrays(fresh / f"{key}.npz", plan.ask(embedder, features))
        told = {
            "model": encoder_params.model,
            "network": encoder_params.network,
            "weights_sha256": weights_sha256(encoder_params),
            "imported": _imported(encoder),
            "asked": fingerprint(params, paths),
            "features": features.folder.name if features.rows else None,
        }
        write_text(fresh / ANSWERS, json.dumps(told, indent=1) + "\n")


def plan_all(params: EvaluateParams, setting: Setting) -> dict[str, Measurement | NotMeasured]:
    """Plan every property that has a section; each has random generators of its own, so that none moves another."""
    return {item.name: item.plan(setting, section) for item, section in params.properties.chosen()}


def fingerprint(params: EvaluateParams, paths: StagePaths) -> str:
    """Return the sha256 of what decides the questions: the cohort, the seed and the properties' sections."""
    asked = params.model_dump_json(include={"seed", "max_patients", "num_examples", "dense", "properties"})
    return hashlib.sha256(paths.cohort.read_bytes() + asked.encode()).hexdigest()


def write_arrays(path: Path, arrays: Answers) -> None:
    """Write one .npz atomically, without pickled objects."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_arrays(path: Path) -> dict[str, Any]:
    """Read what `write_arrays` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _write_features(
    folder: Path, embedder: Embedder, setting: Setting, measurements: Mapping[str, Measurement]
) -> Features:
    """Encode every canvas that a property looks up, once."""
    canvases = {subject.key: subject.canvas for subject in setting.cohort.subjects}
    views: dict[CanvasView, None] = {view: None for plan in measurements.values() for view in plan.dense_views()}
    if not views:
        return Features(folder, {})
    encoder, normalisation = embedder.encoder, embedder.encoder.normalisation(embedder.batch)
    depends_on = {
        "weights_sha256": tensors_sha256({key: value.cpu() for key, value in encoder.backbone.state_dict().items()}),
        "precision": encoder.precision,
        "mean": normalisation.mean,
        "std": normalisation.std,
        "set": setting.index.fingerprint,
        "grid": setting.cohort.spec.to_json(),
        **setting.dense.model_dump(),
    }
    shown = {view: canvases[view.key] for view in views}
    return write_features(folder / "features", embedder, setting.axis, shown, depends_on)


def _imported(encoder: Encoder) -> dict[str, Any] | None:
    """Tell what the encoder is and where its weights come from, if others trained it."""
    if not isinstance(encoder.config, ImportedConfig):
        return None
    backbone, source = encoder.config.backbone, encoder.config.source
    return {**backbone.model_dump(include={"name", "model_args"}), **source.model_dump(include={"file", "sha256"})}
