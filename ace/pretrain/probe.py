"""Online evaluation on labelled shards: what the teacher's frozen features say about findings while it trains.

The loss of self-supervision is no measure of quality; this is. Features come from the whole canvas at crop size, as in
the evaluation (method.md §5); classifiers are made on patients of `train` and scored on patients of `val`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from ace.data.crops import whole_images
from ace.embed.embedder import Embedder, pool, unit
from ace.embed.encoder import Encoder
from ace.embed.probe_scores import NOT_KNOWN, auroc_by_label, knn_votes, linear_scores
from ace.models.backbone import Backbone
from ace.models.params import Precision
from ace.models.precision import finished_precision
from ace.pretrain.monitor_params import ProbeParams
from shards.core.errors import ConfigError
from shards.core.params import MixParams
from shards.core.records import Split
from shards.reading.reader import ShardIndex, ShardReader

Members = Sequence[tuple[ShardIndex, MixParams]]
Place = tuple[int, int]
"""(number of the shard set, row of its index)."""


@dataclass(frozen=True)
class LabelledImages:
    """Some images of one split.

    Attributes:
        places: Where they lie, in the order of the shards.
        labels: 1, 0, or `NOT_KNOWN` for uncertain and unknown; one column for each of the plan's labels.
    """

    places: tuple[Place, ...]
    labels: Int[np.ndarray, "images labels"]


@dataclass(frozen=True, kw_only=True)
class ProbePlan:
    """A probe plan names the images and labels that a run's probes look at, the same at every epoch.

    Attributes:
        members: The shard sets.
        labels: Names of the labels that can be scored.
        train: Images to vote and to fit on.
        val: Images to score.
    """

    members: Members
    labels: tuple[str, ...]
    train: LabelledImages
    val: LabelledImages


def plan_probe(members: Members, params: ProbeParams, *, seed: int) -> ProbePlan:
    """Choose images and labels; done before training, so that a probe that cannot work does not end it at night.

    Args:
        members: Labelled shard sets, with the normalisation of each; one patient is in one split only.
        params: How many images, and which labels.
        seed: Decides which patients are taken where there are more images than asked for.

    Raises:
        ConfigError: a label asked for is nowhere, or no label has enough images with and without it.
    """
    answers = {split: _read_answers(members, split, limit, seed) for split, limit in _limits(params)}
    found = sorted({name for _, metas in answers.values() for labels in metas for name in labels})
    absent = sorted(set(params.labels or ()) - set(found))
    if absent:
        raise ConfigError(
            f"probe.labels asks for {absent}, which no image looked at has; there are: {', '.join(found) or 'none'}"
        )
    names = [name for name in found if params.labels is None or name in params.labels]
    train, val = (LabelledImages(places, _matrix(metas, names)) for places, metas in answers.values())
    is_scored = _has_both(train.labels, 1) & _has_both(val.labels, params.min_positives)
    if not is_scored.any():
        raise ConfigError(
            f"the probe can score no label: each needs images with and without it among the {len(train.places)} of "
            f"train, and at least {params.min_positives} of both (probe.min_positives) among the {len(val.places)} "
            f"of val. Found: {_describe(names, train.labels, val.labels)}. Raise shard.splits.val, "
            "probe.max_val_images or the number of labelled images, or switch the probe off (probe.every_epochs 0)"
        )
    return ProbePlan(
        members=members,
        labels=tuple(np.array(names, dtype=object)[is_scored]),
        train=LabelledImages(train.places, train.labels[:, is_scored]),
        val=LabelledImages(val.places, val.labels[:, is_scored]),
    )


def run_probe(
    backbone: Backbone,
    plan: ProbePlan,
    params: ProbeParams,
    *,
    in_channels: int,
    precision: Precision,
    device: torch.device,
) -> dict[str, float]:
    """Score the frozen features once; uses and changes no global random state, so training goes on as without it.

    Args:
        backbone: In evaluation mode, on `device`.
        plan: What to look at.
        params: The classifiers' settings.
        in_channels: Channels of the backbone's input, 1 or 3.
        precision: Of the training; on the CPU features are fp32 all the same.
        device: Where it runs.

    Returns:
        `probe_knn_auroc` and `probe_linear_auroc`, means over the labels (chance is 0.5); the same of each label as
        `probe_knn_auroc_of/LABEL`, `probe_linear_auroc_of/LABEL`; `probe_num_train`, `probe_num_val` images and
        `probe_num_labels`.
    """
    assert not backbone.training, "a probe of a backbone in training mode would draw from the global generators"
    in_use = finished_precision(precision, device)
    train, val = (
        _features(backbone, plan.members, images.places, params, in_channels, in_use)
        for images in (plan.train, plan.val)
    )
    labels = plan.train.labels
    scores = {
        "knn": knn_votes(train, labels, val, k=params.k, temperature=params.temperature),
        "linear": linear_scores(train, labels, val, l2=params.linear_l2),
    }
    aurocs = {name: auroc_by_label(plan.val.labels, values) for name, values in scores.items()}
    return {
        **{f"probe_{name}_auroc": float(np.mean(values)) for name, values in aurocs.items()},
        # Not `probe_knn_auroc/LABEL`: in a nested summary a name cannot be both a number and a group.
        **{
            f"probe_{name}_auroc_of/{label}": value
            for name, values in aurocs.items()
            for label, value in zip(plan.labels, values, strict=True)
        },
        "probe_num_train": float(len(train)),
        "probe_num_val": float(len(val)),
        "probe_num_labels": float(len(plan.labels)),
    }


def _features(
    backbone: Backbone,
    members: Members,
    places: Sequence[Place],
    params: ProbeParams,
    in_channels: int,
    precision: Precision,
) -> Float[np.ndarray, "images dim"]:
    """E(x) of each image, in the order of `places`, which follows that of the members."""
    pooled = []
    for number, (index, mix) in enumerate(members):
        rows = np.array([row for member, row in places if member == number], dtype=np.int64)
        own = {index.name: mix.normalisation(in_channels, index.name)}
        teacher = Encoder(backbone=backbone, spec=index.spec, in_channels=in_channels, precision=precision, given=own)
        embedder = Embedder(
            encoder=teacher, batch=index.name, images_per_forward=params.images_per_forward, name="teacher"
        )
        pooled += [pool(tokens) for tokens in embedder.tokens(whole_images(index, rows))]
    return unit(np.concatenate(pooled))


def _limits(params: ProbeParams) -> list[tuple[Split, int]]:
    return [("train", params.max_train_images), ("val", params.max_val_images)]


def _read_answers(
    members: Members, split: Split, limit: int, seed: int
) -> tuple[tuple[Place, ...], list[dict[str, int | None]]]:
    """Read the chosen places of a split and what the shards say about each."""
    places = _choose(members, split, limit, seed)
    readers = [ShardReader(index) for index, _ in members]
    return places, [readers[member].meta(row)["labels"] for member, row in places]


def _choose(members: Members, split: Split, limit: int, seed: int) -> tuple[Place, ...]:
    """Choose all images of patients in random order up to `limit`, put back into the order of the shards."""
    rows = [index.select(split) for index, _ in members]
    member_of = np.repeat(np.arange(len(rows)), [len(chosen) for chosen in rows])
    if not len(member_of):
        raise ConfigError(
            f"the probe needs images of the split '{split}' and its shard sets "
            f"({', '.join(index.name for index, _ in members) or 'none'}) have none; raise shard.splits.{split}"
        )
    patients = [index.rows["patient"][own] for (index, _), own in zip(members, rows, strict=True)]
    _, patient_of = np.unique(np.concatenate(patients), return_inverse=True)
    turn = np.random.default_rng(seed).permutation(patient_of.max() + 1)
    chosen = np.sort(np.argsort(turn[patient_of], kind="stable")[:limit])
    return tuple(zip(member_of[chosen].tolist(), np.concatenate(rows)[chosen].tolist(), strict=True))


def _matrix(metas: Sequence[dict[str, int | None]], names: Sequence[str]) -> Int[np.ndarray, "images labels"]:
    rows = [[NOT_KNOWN if labels.get(name) not in (0, 1) else labels[name] for name in names] for labels in metas]
    return np.array(rows, dtype=np.int64).reshape(len(metas), len(names))


def _has_both(labels: Int[np.ndarray, "images labels"], least: int) -> np.ndarray:
    is_enough: np.ndarray = ((labels == 1).sum(axis=0) >= least) & ((labels == 0).sum(axis=0) >= least)
    return is_enough


def _describe(names: Sequence[str], train: np.ndarray, val: np.ndarray) -> str:
    """Describe how many images have each label and how many have not, for a message."""
    counts = [
        f"{name}: train {(train[:, i] == 1).sum()} with, {(train[:, i] == 0).sum()} without; "
        f"val {(val[:, i] == 1).sum()} with, {(val[:, i] == 0).sum()} without"
        for i, name in enumerate(names)
    ]
    return " | ".join(counts) or "no label at all"
