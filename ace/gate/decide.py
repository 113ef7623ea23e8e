"""The stage `decide`: hold the first encoder to the rules of the gate, by the answers that `measure` wrote."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from ace.embed.opening import EncoderParams
from ace.evaluation.evaluate import read_told
from ace.evaluation.measure import read_arrays
from ace.evaluation.params import EvaluateParams
from ace.evaluation.setting import StagePaths, read_setting
from ace.gate.figures import check_figures
from ace.gate.params import MODEL, FrozenParams, GateParams
from ace.gate.rules import (
    INCUMBENT,
    UNTRAINED,
    Decision,
    Readings,
    collapse_rules,
    figure_rules,
    hash_of_gate,
    leak_rules,
)
from ace.pretrain.monitor_params import CollapseParams
from ace.pretrain.monitors import collapse_bounds
from ace.properties.base import Measurement, Reading, Setting
from ace.protocol.cohort import Subject
from shards.core.errors import ConfigError
from shards.format.layout import INDEX, sha256_of
from shards.reading.reader import ShardReader

FROM_COHORT = ("composition", "decomposition", "interpolation")
"""Properties whose figures are of the first patients of the cohort, or of all of them, in its order."""
GROUPED_BY = ("sex", "age", "view")
"""Facts of an image by which patients are grouped; a batch has one site."""


def decide(
    gate: GateParams,
    params: EvaluateParams,
    encoders: Mapping[str, EncoderParams],
    collapse: CollapseParams,
    out_dim: int,
    paths: StagePaths,
    training: Path,
) -> Decision:
    """Decide whether the model of the first encoder is accepted.

    Args:
        gate: Section `operations.gate`.
        params: Section `evaluate`.
        encoders: Section `encoders`; the first one is the candidate, and `incumbent` the accepted model, if any.
        collapse: Section `pretrain.collapse`.
        out_dim: Width of the global head's output, `pretrain.global_head.out_dim`.
        paths: Where the stages read and write.
        training: The last row that the training of the candidate logged, as JSON.

    Raises:
        ConfigError: an encoder is missing or was measured otherwise, or a figure is not known.
    """
    first = next(iter(encoders))
    if encoders[first].model != MODEL or UNTRAINED not in encoders:
        raise ConfigError(
            f"encoders: the first is {first}, of {encoders[first].model}, and the names are {', '.join(encoders)}; "
            f"expected an encoder of {MODEL} first, and one named {UNTRAINED}"
        )
    check_figures(gate, params)
    names = {"candidate": first, UNTRAINED: UNTRAINED}
    if INCUMBENT in encoders:
        names[INCUMBENT] = INCUMBENT
    for name in names.values():
        read_told(name, encoders[name], params, paths)
    last = json.loads(training.read_text(encoding="utf-8"))
    independence = json.loads(paths.independence.read_text(encoding="utf-8"))[first]
    bounds = collapse_bounds(collapse, out_dim=out_dim if "teacher_entropy" in last else None)
    readings = _readings(gate, params, names, paths)
    return Decision(
        rules=(
            *leak_rules(independence, is_accepted=params.accept_shared_images),
            *collapse_rules(bounds, last),
            *(rule for name, own in readings.items() for rule in figure_rules(name, own, gate, params)),
        ),
        gate_sha256=hash_of_gate(gate, params, collapse.model_dump(mode="json")),
        has_incumbent=INCUMBENT in encoders,
    )


def check_frozen(frozen: FrozenParams, batch: str, mix: Mapping[str, Any], shards: Path) -> None:
    """Refuse to compare models on other images than those that the params pin.

    Args:
        frozen: Section `operations.gate.frozen`.
        batch: The batch that is measured, `evaluate.batch`.
        mix: Section `mix`.
        shards: Folder of all shard sets.

    Raises:
        ConfigError: another batch is measured, it is trained on, or its images are others.
    """
    if batch != frozen.batch:
        raise ConfigError(
            f"evaluate.batch is {batch}, and operations.gate.frozen.batch is {frozen.batch}; expected one batch, on "
            "which every model is compared"
        )
    if batch in mix and mix[batch]["weight"] > 0:
        raise ConfigError(
            f"{batch} is trained on (mix.{batch}.weight is {mix[batch]['weight']:g}), and operations.gate.frozen names "
            "it; set the weight to 0, or freeze a batch that nobody trains on"
        )
    path = shards / batch / INDEX
    found = sha256_of(path) if path.is_file() else None
    if found != frozen.fingerprint:
        raise ConfigError(
            f"{path}: {'not found' if found is None else f'has the sha256 {found}'}, and "
            f"operations.gate.frozen.fingerprint is {frozen.fingerprint}: these are not the frozen images. Restore "
            "them (`dvc checkout`); write the new fingerprint only if another frozen set is wanted, from which on "
            "versions are no longer compared on the same patients"
        )


def _readings(
    gate: GateParams, params: EvaluateParams, names: Mapping[str, str], paths: StagePaths
) -> dict[str, Readings]:
    """Read the figures of the gate from the answers of each encoder; a plan needs the patients' images."""
    setting, found = read_setting(params, paths), {}
    told = _told(setting)
    for item, section in params.properties.chosen():
        plan = item.plan(setting, section)
        if not isinstance(plan, Measurement):
            continue
        patients = [told[subject.key] for subject in _subjects(item.name, plan, setting)]
        own: dict[str, Mapping[str, Reading]] = {
            role: plan.read(read_arrays(paths.answers / name / f"{item.name}.npz")) for role, name in names.items()
        }
        for name in gate.figures.keys() & own["candidate"].keys():
            found[name] = Readings(
                candidate=own["candidate"][name],
                untrained=own[UNTRAINED][name],
                incumbent=own[INCUMBENT][name] if INCUMBENT in own else None,
                groups=dict(_grouped(patients[: own["candidate"][name].num_patients])),
            )
    if absent := sorted(gate.figures.keys() - found.keys()):
        raise ConfigError(
            f"operations.gate.figures names {', '.join(absent)}, which cannot be measured on these patients; "
            "metrics/properties.json says why"
        )
    return {name: found[name] for name in gate.figures}


def _told(setting: Setting) -> dict[str, dict[str, Any]]:
    """Read what the shards say of the image of each patient of the cohort, by the image's key."""
    rows = {key: row for row, key in enumerate(setting.index.keys(np.arange(len(setting.index.rows))))}
    reader = ShardReader(setting.index)
    return {subject.key: reader.meta(rows[subject.key]) for subject in setting.cohort.subjects}


def _subjects(name: str, plan: Measurement, setting: Setting) -> Sequence[Subject]:
    """Return the patients that a property's figures are of, in their order, or some after them; none if unknown."""
    return setting.cohort.subjects if name in FROM_COHORT else getattr(plan, "subjects", ())


def _grouped(told: list[dict[str, Any]]) -> Iterator[tuple[str, Bool[np.ndarray, " patients"]]]:
    """Group patients by what is known of their images; what is unknown groups nobody."""
    for fact in GROUPED_BY:
        values = [own[fact] for own in told]
        for value in sorted({value for value in values if value is not None}):
            yield f"{fact} {value}", np.array([own == value for own in values])
