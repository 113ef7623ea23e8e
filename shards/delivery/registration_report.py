"""Print what `register` understood of a delivery, and everything that may be wrong with it, to stderr."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.core.errors import ConfigError
from shards.core.modality import OWN_KINDS, check_mixture, pictures_of
from shards.core.normalisation import as_written
from shards.core.params import BatchParams, SelectParams
from shards.core.records import Record
from shards.delivery.earlier_batches import Growth
from shards.delivery.manifest import Delivery
from shards.delivery.project import Project
from shards.delivery.selection import OPTION as SELECT_OPTION
from shards.delivery.selection import Selection, describe, describe_mixture
from shards.delivery.sites import OPTION as SITE_OPTION
from shards.delivery.survey import Survey, list_reasons
from shards.format.exclusion import read_exclusion
from shards.runtime.text import count_of
from shards.sources.base import Listing
from shards.sources.patients import OPTION as PATIENT_OPTION


def report_selection(
    records: Sequence[Record], rules: SelectParams, selection: Selection, kind: str, *, unattended: bool
) -> None:
    """Say which images were taken, or that a rule would tell several kinds of them apart."""
    if rules != SelectParams():
        num_taken = len(records) - len(selection.left_out)
        print(f"selected: {num_taken:,} of {len(records):,} images{describe(selection, rules)}", file=sys.stderr)
        if "view" in selection.counts.left_out and not unattended:
            print(f"to take images of every view: {SELECT_OPTION} view=any", file=sys.stderr)
    elif mixture := describe_mixture(records, kind):
        print(f"warning: {mixture}", file=sys.stderr)


def report_left_out(growth: Growth, num_left_out: int, listed: Path) -> None:
    """Say what is left out, and where it is listed."""
    if growth.copies:
        batches = ", ".join(f"{batch} has {number}" for batch, number in growth.copies.items())
        print(
            f"left out as copies of images in earlier batches, whatever their files are called: "
            f"{count_of(growth.copies.total(), 'image')} ({batches})",
            file=sys.stderr,
        )
    print(
        f"{listed} lists {count_of(num_left_out, 'file')} that were left out, with the reasons; only you can read it",
        file=sys.stderr,
    )


def report_excluded_patients(
    name: str, delivery: Delivery, batches: Iterable[str], project: Project, *, unattended: bool
) -> None:
    """Warn of new images of patients who are excluded of other batches, as after a withdrawal of their consent.

    A service does not name them: others keep and read what it prints.
    """
    excluded = {patient for other in batches for patient in read_exclusion(other, project.root).patients}
    excluded -= read_exclusion(name, project.root).patients
    found = sorted({entry.record.patient for entry in delivery.entries} & excluded)
    if found:
        command = " ".join(f"--patient {'PSEUDONYM' if unattended else patient}" for patient in found)
        print(
            f"warning: {name} has images of {count_of(len(found), 'patient')} excluded from other batches; "
            f"`python -m shards exclude {name} {command}` excludes them here too",
            file=sys.stderr,
        )


def report_patients(
    name: str, listing: Listing, growth: Growth, kind: str, namesakes: Mapping[str, int], *, unattended: bool
) -> None:
    """Say how far patients are known, and which of them other batches have."""
    if listing.patient_grouping == "image":
        column, rule = ("operations.deliveries.labels", "patient_from") if unattended else ("--labels", PATIENT_OPTION)
        remedy = f"; give them in the column patient of a CSV ({column}) or by {rule}"
        print(
            "warning: patients are unknown, so each image is put into a split by itself, and images of one patient may "
            "be both in train and in test; the index records this as patient_grouping: image"
            f"{remedy if kind in OWN_KINDS else ''}",
            file=sys.stderr,
        )
    for other in listing.shares_images_with:
        print(
            f"warning: some images may be in {other} too, and nothing in the folder tells which (docs/register.md)",
            file=sys.stderr,
        )
    if unattended:
        undo, again, option = f"ace deliveries refuse {name}", "have it sent again", "operations.deliveries.site:"
    else:
        undo, again, option = f"shards remove {name}", "delete its manifest, and register it", SITE_OPTION
    for site, number in namesakes.items():
        print(
            f"warning: {count_of(number, 'patient')} with the same ids as patients of "
            f"{f'the site {site}' if site else 'batches without a site'} are taken for other people. If they are the "
            f"same people, they may be both in train and in test: take the batch out (`python -m {undo}`), {again} "
            f"with {option} {site or repr('')}",
            file=sys.stderr,
        )
    if growth.num_old:
        print(
            f"in earlier batches too, where they keep their splits: {count_of(growth.num_old, 'patient')}",
            file=sys.stderr,
        )
    if growth.num_kept:
        print(
            f"warning: {count_of(growth.num_kept, 'patient')} of earlier batches would get other splits by the "
            "dataset's lists or --splits; the splits of the earlier batches are kept",
            file=sys.stderr,
        )


def report_batch(
    name: str,
    delivery: Delivery,
    survey: Survey,
    grouping: str,
    *,
    is_known: bool,
    mix: Mapping[str, Any] | None,
    shared: str | None,
    takes_grey: bool,
    unattended: bool,
) -> None:
    """Say what was registered, how it is normalised, and what may be wrong with it."""
    if survey.unread:
        print(
            f"warning: of {count_of(survey.num_images, 'image')} that were tried, {survey.unread.total()} cannot be "
            f"read and will be quarantined:{list_reasons(survey.unread)}",
            file=sys.stderr,
        )
    num_patients = len({entry.record.patient for entry in delivery.entries})
    patients = f" of {count_of(num_patients, 'patient')}" if delivery.header.patient_grouping == "patient" else ""
    verb = "already registered" if is_known else "registered"
    written, otherwise = survey.normalisation, survey.in_grey
    if takes_grey:
        written, otherwise = otherwise, written
    mean, std = (as_written(levels) for levels in written)
    print(
        f"{verb}: {name}, {count_of(len(delivery.entries), 'image')}{patients} ({grouping}), "
        f"{count_of(survey.channels, 'channel')}, mean {mean}, std {std}",
        file=sys.stderr,
    )
    if mix is None:
        if not unattended:
            print(
                f"{name} is not trained on (weight 0); `python -m ace evaluate --batch {name}` measures on it",
                file=sys.stderr,
            )
        return
    if shared is not None:
        print(
            f"{name} is normalised like {shared}, by mean {mix['mean']} and std {mix['std']}, so that a model has one "
            f"normalisation for both; to use its own mean and std, write them to mix.{name} in params.yaml",
            file=sys.stderr,
        )
    elif (mix["mean"], mix["std"]) != (mean, std):
        print(
            f"params.yaml keeps mean {mix['mean']} and std {mix['std']} for {name}, which differ from those measured "
            "now: they are another batch's, or were measured with other parameters, or written by hand; to use the "
            f"new ones, write them to mix.{name}",
            file=sys.stderr,
        )
    if survey.channels == 3:
        mean, std = (as_written(levels) for levels in otherwise)
        seen, channels = ("in grey", 3) if takes_grey else ("in colour", 1)
        print(
            f"the project's network sees these images {seen}; if you set pretrain.backbone.in_channels to {channels}, "
            f"also set mean {mean} and std {std} in mix.{name}",
            file=sys.stderr,
        )


def report_mixture(batches: Mapping[str, BatchParams], values: Mapping[str, Any], new: str) -> None:
    """Warn if training would refuse the mix of pictures that the new batch makes."""
    mixed = {*(values.get("mix") or {}), new}
    pictures = {name: pictures_of(batch.source) for name, batch in batches.items() if name in mixed}
    try:
        unsaid = check_mixture(pictures, is_accepted=bool((values.get("pretrain") or {}).get("accept_mixed_images")))
    except ConfigError as error:
        print(f"warning: {error}", file=sys.stderr)
        return
    if new in unsaid:
        others = ", ".join(f"{name} ({sort})" for name, sort in pictures.items() if name != new)
        print(
            f"warning: the kind of pictures in {new} is not known, and training mixes it with {others}; give it by "
            "--modality (chest, fundus or a word of your own), so that a mix of different kinds is refused",
            file=sys.stderr,
        )


def report_only(name: str, others: Sequence[str], copies: Sequence[Path]) -> None:
    """Say what the project no longer has, and where to find it."""
    if others:
        print(
            f"taken out of params.yaml and dvc.yaml: {', '.join(others)}; their shards and manifests are kept",
            file=sys.stderr,
        )
    if copies:
        print(f"copies of the files as they were before: {', '.join(map(str, copies))}", file=sys.stderr)
    print(f"{name} is the project's only batch; now run `dvc repro`", file=sys.stderr)
