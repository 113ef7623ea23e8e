"""The stage `cohort`: which patients are measured, once for all encoders, so that no model has seen them."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ace.embed.opening import EncoderParams
from ace.evaluation.params import EvaluateParams
from ace.evaluation.setting import StagePaths, open_set
from ace.protocol.cohort import choose_rows
from ace.protocol.independence import check_model
from shards.core.errors import ConfigError
from shards.reading.copies import find_trained_copies
from shards.reading.lineage import warn_of_unknown_patients
from shards.reading.reader import ShardIndex
from shards.runtime.atomic import write_text
from shards.store.location import Location, location_of


def choose_cohort(params: EvaluateParams, encoders: Mapping[str, EncoderParams], paths: StagePaths) -> None:
    """Choose patients that none of the models has seen, and write who they are.

    Raises:
        ContaminationError: a model was trained on some of the patients, or may have been, and nobody has said yes.
        ConfigError: there are fewer patients than a property needs.
    """
    index, split = open_set(params, paths), params.split
    models = sorted({encoder.model for encoder in encoders.values()})
    independence = {
        model: check_model(
            Path(model), index, paths.project, split=params.split, is_accepted=params.accept_shared_images
        )
        for model in models
    }
    unknown = sorted({name for found in independence.values() for name in found.get("batches_without_patients", ())})
    warn_of_unknown_patients(unknown, "the figures may be too good, by an unknown amount")
    index, left_out, num_copies = _without_trained_copies(models, index, paths.shards, params)
    for model, number in num_copies.items():
        independence[model]["num_patients_with_copies"] = number
    rows = choose_rows(index, split, params.max_patients, params.seed)
    for item, section in params.properties.chosen():
        if len(rows) < item.min_patients(section):
            raise ConfigError(
                f"{len(rows)} {split} patients, but evaluate.properties.{item.name} needs {item.min_patients(section)} "
                f"different ones; make more patients, give the {split} split a larger share, or lower its numbers"
            )
    chosen = {"batch": index.name, "split": split, "keys": index.keys(rows), "left_out": sorted(left_out)}
    write_text(paths.independence, _json({name: independence[item.model] for name, item in encoders.items()}))
    write_text(paths.cohort, _json(chosen))


def _without_trained_copies(
    models: Sequence[str], index: ShardIndex, shards: Location, params: EvaluateParams
) -> tuple[ShardIndex, set[str], dict[str, int]]:
    """Leave out patients of whom a model saw a picture in another set; returns who they are, and how many by model.

    All images of the patients who would be measured are asked for, and then those of the patients who take the places
    of the ones that are left out, so that the time is bounded by their number. Where shared images are accepted all
    stay, and are counted. A model that there is nothing to compare with has no number.
    """
    asked: set[str] = set()
    left_out: set[str] = set()
    found: dict[str, set[str]] = {}
    remaining = list(models)
    while True:
        rows = choose_rows(index, params.split, params.max_patients, params.seed)
        in_split = index.select(params.split)
        is_measured = np.isin(index.rows["patient"][in_split], index.rows["patient"][rows])
        keys = set(index.keys(in_split[is_measured])) - asked
        patients: set[str] = set()
        for model in list(remaining):
            copies = find_trained_copies(Path(model), index, keys, lambda name: location_of(shards, name))
            if copies is None:
                remaining.remove(model)
                continue
            seen = {pair.first.patient for pair in copies}
            found.setdefault(model, set()).update(seen)
            patients |= seen
            if seen:
                pair = copies[0]
                what = "all the same measured" if params.accept_shared_images else "left out"
                print(
                    f"warning: {len(seen)} {params.split} patients of {index.name} have pictures that the model was "
                    f"trained on under other names, as {pair.first.key}, which is {pair.second.key} of "
                    f"{pair.second.report.parent.name} (correlation {pair.correlation:.3f}); they are {what}",
                    file=sys.stderr,
                )
        asked |= keys
        if not patients or params.accept_shared_images:
            return index, left_out, {model: len(of_model) for model, of_model in found.items()}
        left_out |= patients
        index = index.without_patients(patients)


def _json(values: Any) -> str:
    return json.dumps(values, indent=1) + "\n"
