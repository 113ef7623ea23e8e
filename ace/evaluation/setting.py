"""Stages of the evaluation share these: the paths that they read and write, and the patients who are measured."""

import json
from dataclasses import dataclass
from pathlib import Path

from ace.evaluation.params import EvaluateParams
from ace.properties.base import Setting
from ace.protocol.cohort import read_cohort
from shards.core.errors import ConfigError
from shards.reading.reader import ShardIndex
from shards.store.location import Location, location_of


@dataclass(frozen=True, kw_only=True)
class StagePaths:
    """Paths say where the stages of the evaluation read and write.

    Attributes:
        shards: Folder or URL of all shard sets.
        project: The folder of params.yaml: its manifests are compared with the file names that a published model lists,
            and it says which images of the batch are excluded.
        cohort: JSON of the patients who are measured. It names no model, so that another one leaves it as it is.
        independence: JSON of what each encoder's model was trained on, as far as it is known.
        answers: Folder with a folder for each encoder.
        metrics: JSON of figures, each with n, chance and interval, and under `measured` whose they are.
        evidence: Folder of what the report draws.
    """

    shards: Location
    project: Path
    cohort: Path
    independence: Path
    answers: Path
    metrics: Path
    evidence: Path


def read_setting(params: EvaluateParams, paths: StagePaths) -> Setting:
    """Read the patients that `choose_cohort` chose, and all that properties plan from.

    Raises:
        ConfigError: the stage has not run, or the shard set or params.yaml has changed since.
    """
    advice = "`python -m ace cohort` chooses them anew"
    if not paths.cohort.is_file():
        raise ConfigError(f"{paths.cohort}: not found, which says whose patients are measured; {advice}")
    chosen = json.loads(paths.cohort.read_text(encoding="utf-8"))
    index = open_set(params, paths).without_patients(chosen["left_out"])
    cohort = read_cohort(index, params.split, params.max_patients, params.seed)
    found = {"batch": index.name, "split": params.split, "keys": [subject.key for subject in cohort.subjects]}
    if found != {key: chosen[key] for key in found}:
        raise ConfigError(
            f"{paths.cohort}: {len(chosen['keys'])} {chosen['split']} patients of {chosen['batch']}, and params.yaml "
            f"and the shards now give {len(found['keys'])} {params.split} patients of {index.name}, or others; {advice}"
        )
    return Setting(
        cohort=cohort,
        index=index,
        dense=params.dense,
        seed=params.seed,
        max_patients=params.max_patients,
        num_examples=params.num_examples,
    )


def open_set(params: EvaluateParams, paths: StagePaths) -> ShardIndex:
    """Open the shard set that is measured, without what the project excludes."""
    return ShardIndex.open(location_of(paths.shards, params.batch)).without_excluded(paths.project)
