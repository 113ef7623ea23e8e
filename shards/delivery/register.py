"""Register a delivery of images as a new batch: a manifest, the file batches/NAME.yaml, and its part in the graph."""

import csv
import hashlib
import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal, get_args

from shards.core.config import read_params
from shards.core.errors import ConfigError, SourceError
from shards.core.identity import IdKey, load_id_key, read_id_key, split_of
from shards.core.modality import OWN_KINDS
from shards.core.params import (
    MODALITY,
    BatchParams,
    GridParams,
    RegisteredSourceParams,
    SelectParams,
    ShardParams,
    SourceKind,
    check_batch_name,
)
from shards.core.records import Record, files_of
from shards.delivery.batches import batch_path, format_batch, read_batch, read_batches, root_path, settings_of
from shards.delivery.earlier_batches import Growth, Registered, Settled, grow, read_settled, unchanged_files
from shards.delivery.manifest import (
    Delivery,
    Entry,
    SplitRule,
    check_records,
    format_manifest,
    hashed,
    identify,
    iterate_manifest,
)
from shards.delivery.mixing import mix_item, takes_grey
from shards.delivery.project import Project, check_tasks, portable
from shards.delivery.published_key import warn_of_published_key
from shards.delivery.registration_report import (
    report_batch,
    report_excluded_patients,
    report_left_out,
    report_mixture,
    report_only,
    report_patients,
    report_selection,
)
from shards.delivery.selection import Selection, select_images, select_of
from shards.delivery.sites import OPTION as SITE_OPTION
from shards.delivery.sites import choose_site, count_namesakes
from shards.delivery.survey import Survey, survey_images
from shards.delivery.yaml_lines import (
    PHANTOM,
    PHANTOM_STAGE,
    SHARDS,
    add_deps,
    add_item,
    consumers,
    drop_deps,
    drop_stage,
    keep_items,
    set_dep,
    set_value,
)
from shards.format.exclusion import exclusion_dep, exclusion_path
from shards.format.layout import MANIFESTS
from shards.runtime.atomic import clear_when_full, make_private_folder, write_private_text, write_text
from shards.runtime.progress import progress
from shards.sources.base import Listing, Source
from shards.sources.datasets.folder import read_label_rows
from shards.sources.files import is_file, list_files
from shards.sources.images import SUFFIXES
from shards.sources.patients import OPTION as PATIENT_OPTION

Normalize = Literal["shared", "own"]
_MAX_COMPARED_ROWS = 50
_FORMER_RULE = r"^([^/]+)/|([^/]+)\.[^.]+$"
_IN_NO_LIST = "an image that the dataset's lists do not name"


def register_batch(
    name: str,
    root: Path,
    source: Source,
    *,
    weight: float | None = None,
    split_rule: SplitRule = "official",
    with_sex: bool = False,
    site: str | None = None,
    modality: str | None = None,
    only: bool = False,
    normalize: Normalize = "shared",
    select: Mapping[str, Any] | None = None,
    unattended: bool = False,
    project: Project | None = None,
) -> None:
    """Add images to the project; `dvc repro` then does the rest.

    The files stay where they are. A batch never changes: the same call twice is harmless (and completes a call that was
    killed, or restores a lost manifest), the same name with other files is refused. A folder that has grown is
    registered again under a new name: images that an earlier batch has, of whatever folder, are left out. Every batch
    names the identity key, and all the same one. What is left out stands in a private list beside the manifest.

    With `only` the batch becomes the project's only one: the other items of `batches` and what the stages read of them
    are taken out, and `evaluate.batch` names it. Shards and manifests of the others stay on the disk, and so do both
    files as they were, as params.yaml.before-NAME and dvc.yaml.before-NAME.

    Args:
        name: Name of the batch, as `clinic-b000`.
        root: The folder.
        source: Reads it.
        weight: Share in training; 1, which None stands for, shows each image once per epoch. 0 leaves the batch out of
            the section `mix` and of what training depends on: a set to measure on.
        split_rule: `official` keeps the dataset's own splits where it has them, `hash` splits patients by their hash.
        with_sex: Let the shards say the patients' sex.
        site: Who gave the patients of your own images their ids; None: as `shards.delivery.sites.choose_site` tells.
        modality: The kind of pictures of your own images, as `chest`; None: that of earlier batches of the site.
        only: Take every other batch out of the project.
        normalize: `shared`: the mean and std of an earlier batch of the mix with the same source, site and channels, so
            that one model has one normalisation for all of them; `own`: those of the batch's own images.
        select: Which images of the folder the batch takes (`shards.delivery.selection.parse_select`); None: as the
            batch's file says, or of a new batch of chest radiographs the frontal views.
        unattended: A service registers, which takes the next step by itself and has settings instead of options. Others
            read what is printed, so that has no pseudonyms either.
        project: The project's params.yaml and dvc.yaml; None: those of the working directory.

    Raises:
        ConfigError: the name is taken by other files or unfit, the batch is registered with a part in training and the
            weight is 0, or the other way round, the files of the project are not as expected, or the only batch would
            have no part in training.
        SourceError: the folder is not as the source expects, no image in it is selected or can be read, or, with
            `only`, it has too few test patients to measure on.
        IdKeyError: there is no identity key, or another one than the project's.
    """
    project = project or Project()
    request = _Request(
        name=name,
        root=root,
        source=source,
        weight=weight,
        split_rule=split_rule,
        with_sex=with_sex,
        site=site,
        modality=modality,
        only=only,
        normalize=normalize,
        select=select,
        unattended=unattended,
    )
    _check_request(request)
    with project.editing():
        before = _read_project(request, project)
        taken = _take_images(request, before)
        records = [entry.record for entry in taken.growth.entries]
        survey = survey_images(root, records, before.grid, before.shard)
        change = _plan_change(request, before, taken, survey)
        copies = _write(request, before, taken, change)
        _report(request, before, taken, survey, change, copies)


@dataclass(frozen=True, kw_only=True)
class _Request:
    """The arguments of `register_batch` that decide what is registered and what is said of it."""

    name: str
    root: Path
    source: Source
    weight: float | None
    split_rule: SplitRule
    with_sex: bool
    site: str | None
    modality: str | None
    only: bool
    normalize: Normalize
    select: Mapping[str, Any] | None
    unattended: bool


@dataclass(frozen=True, kw_only=True)
class _Before:
    """The project as the command finds it.

    Attributes:
        project: The project's two files.
        values: Content of params.yaml.
        grid: Its section `grid`.
        shard: Its section `shard`.
        batches: Its batches.
        kept: The batches that stay in the project.
        key: The identity key.
    """

    project: Project
    values: Mapping[str, Any]
    grid: GridParams
    shard: ShardParams
    batches: Mapping[str, BatchParams]
    kept: Mapping[str, BatchParams]
    key: IdKey


@dataclass(frozen=True, kw_only=True)
class _Taken:
    """The images that a batch takes of a folder.

    Attributes:
        kind: Name of the source.
        site: Who gave the patients their ids; empty in public datasets.
        modality: The kind of pictures of a user's own images; None if nobody said it.
        listing: All images of the folder, with hashes of those that are selected.
        on_file: The batch as batches/NAME.yaml has it; None if it is new.
        rules: The rules that select images.
        selection: Images that the rules leave out.
        settled: Images and patients of other batches.
        delivery: The images that are taken, with ids that name nobody.
        growth: The same images, and what is left out because other batches have it.
        manifest: Text of the manifest.
    """

    kind: str
    site: str
    modality: str | None
    listing: Listing
    on_file: BatchParams | None
    rules: SelectParams
    selection: Selection
    settled: Settled
    delivery: Delivery
    growth: Growth
    manifest: str


@dataclass(frozen=True, kw_only=True)
class _Change:
    """Everything that is to be written, but for the manifest.

    Attributes:
        item: The batch, as batches/NAME.yaml will have it.
        mix: The batch's item of the section `mix`; None where it has no part in training.
        shared: The batch whose mean and std it shares; None if it has its own.
        left_out: Path of every file that is left out → why.
        texts: File of the project → its text as it is.
        with_batch: params.yaml with the batch, beside all others.
        params: params.yaml as it will be.
        dvc: dvc.yaml as it will be.
    """

    item: BatchParams
    mix: Mapping[str, Any] | None
    shared: str | None
    left_out: Mapping[str, str]
    texts: Mapping[Path, str]
    with_batch: str
    params: str
    dvc: str


def _check_request(request: _Request) -> None:
    """Refuse arguments that contradict each other.

    Raises:
        ConfigError: the name is unfit, the source is built in, or the only batch would have no part in training.
    """
    check_batch_name(request.name)
    kind = request.source.info.name
    if kind not in get_args(SourceKind):
        raise ConfigError(
            f"--source {kind}: built in, and no folder to register: its stage makes it (`python -m shards "
            "phantom`), and a new project has it as the batch phantom-b000; expected another of `python -m shards "
            "sources`"
        )
    if request.only and request.weight == 0:
        raise ConfigError(
            f"--weight 0: {request.name} would be the only batch, and nothing would be trained on; expected a weight "
            "above 0"
        )


def _read_project(request: _Request, project: Project) -> _Before:
    """Read the project's files, and refuse a request that contradicts them.

    Raises:
        ConfigError: a file is not as expected, or the batch is registered with a part in training and shall have none,
            or the other way round.
        IdKeyError: there is no identity key, or another one than the project's.
    """
    values = read_params(project.params)
    if not project.dvc.is_file():
        raise ConfigError(f"{project.dvc}: no such file; run from the project's root or pass --dvc FILE")
    grid, shard = settings_of(values, project.params)
    batches, name = read_batches(project.params, values), request.name
    if request.only and name in batches and name not in (values.get("mix") or {}):
        raise ConfigError(
            f"batch {name} is not trained on, so it cannot be the project's only one; first add it to the mix in "
            f"{project.params}: mix.{name}: {{weight: 1.0, mean: …, std: …}}"
        )
    if request.only:
        check_tasks(project.params, values, batches.keys() - {name})
    _check_weight(name, request.weight, batches, values, project)
    kept = {other: batch for other, batch in batches.items() if other == name or not request.only}
    return _Before(
        project=project, values=values, grid=grid, shard=shard, batches=batches, kept=kept, key=_id_key(kept)
    )


def _take_images(request: _Request, before: _Before) -> _Taken:
    """List the folder, select images, and leave out those that other batches have.

    Raises:
        ConfigError: the site, the modality or a file of the batch is wrong.
        SourceError: the folder is not as the source expects, no image in it is selected or new, or the only batch would
            have too few test patients to measure on.
    """
    name, root, project = request.name, request.root, before.project
    kind = request.source.info.name
    site = _site_of(request.site, name, root, kind, before.kept, project)
    listing = _read(request.source, root)
    check_records(listing.records, str(root))
    _check_official_splits(listing, request.split_rule)
    # A batch that was taken out has its file still: it comes back as it was, with its settings and its keep list.
    is_on_file = name in before.batches or batch_path(name, project.root).is_file()
    on_file = (before.batches.get(name) or read_batch(name, project.root)) if is_on_file else None
    modality = _modality_of(request.modality, kind, site, on_file, before.kept)
    rules = select_of(request.select or {}, kind, listing.records)
    if request.select is None and on_file is not None:
        rules = on_file.select or SelectParams()
    selection = select_images(listing.records, rules, request.select or (), kind, str(root))
    settled = read_settled(root, _others(name, before.kept, project))
    listing = replace(listing, records=_hashed(listing.records, root, settled, selection.left_out))

    def deliver(*, as_former: bool) -> tuple[Delivery, Growth, str]:
        whole = identify(
            listing,
            kind,
            before.key,
            split_rule=request.split_rule,
            with_sex=request.with_sex,
            site=site,
            as_former=as_former,
        )
        entries = [entry for entry in whole.entries if entry.record.image.path not in selection.left_out]
        growth = grow(entries, kind, root, settled)
        delivery = Delivery(replace(whole.header, num_images=len(growth.entries)), growth.entries)
        return delivery, growth, "".join(format_manifest(delivery))

    delivered = deliver(as_former=False)
    if on_file is not None and not _is_of(on_file, delivered[-1]):
        former = deliver(as_former=True)
        delivered = former if _is_of(on_file, former[-1]) else delivered
    delivery, growth, manifest = delivered
    if request.only:
        _check_test_patients(growth.entries, before.shard, before.values, root)
    return _Taken(
        kind=kind,
        site=site,
        modality=modality,
        listing=listing,
        on_file=on_file,
        rules=rules,
        selection=selection,
        settled=settled,
        delivery=delivery,
        growth=growth,
        manifest=manifest,
    )


def _plan_change(request: _Request, before: _Before, taken: _Taken, survey: Survey) -> _Change:
    """Decide what is written, and refuse to change a batch that is there.

    Raises:
        ConfigError: the name is taken by other files, or a file of the project is not as expected.
    """
    name, project = request.name, before.project
    item = _batch_of(name, before, taken, survey)
    _check_unchanged(name, before, taken, item)
    mix, shared = _mix_of(item, name, request.weight, before.values, before.kept, share=request.normalize == "shared")
    texts = {path: path.read_text(encoding="utf-8") for path in (project.params, project.dvc)}
    with_batch, dvc = texts[project.params], texts[project.dvc]
    if name not in before.batches:
        with_batch = add_item(with_batch, "batches", name, _dep(name))
        with_batch = with_batch if mix is None else add_item(with_batch, "mix", name, mix)
    if mix is not None:
        dvc = add_deps(dvc, name)
    params = with_batch
    if request.only:
        params = keep_items(keep_items(with_batch, "batches", [name]), "mix", [name])
        params = set_value(params, "evaluate", "batch", name)
        others = {batch for found in consumers(dvc).values() for batch in found} - {name}
        dvc = drop_stage(drop_deps(dvc, {PHANTOM} | {SHARDS + other for other in others}), PHANTOM_STAGE)
        for other in set(before.batches) - {name}:
            dvc = set_dep(dvc, exclusion_dep(other), other, wanted=False)
    is_excluded = exclusion_path(name, project.root).is_file()  # of a batch that was taken out before
    dvc = set_dep(dvc, exclusion_dep(name), name, wanted=is_excluded)
    return _Change(
        item=item,
        mix=mix,
        shared=shared,
        left_out={**_left_out(taken.listing, taken.growth, request.root, taken.kind), **taken.selection.left_out},
        texts=texts,
        with_batch=with_batch,
        params=params,
        dvc=dvc,
    )


def _batch_of(name: str, before: _Before, taken: _Taken, survey: Survey) -> BatchParams:
    """Make the content of batches/NAME.yaml; a batch that was delivered with the same keeps its own."""
    values = {
        "kind": taken.kind,
        "dep": _dep(name),
        "dep_sha256": _sha256(taken.manifest),
        "channels": survey.channels,
        "shares_images_with": list(taken.listing.shares_images_with),
        **({"site": taken.site} if taken.site else {}),
        **({"modality": taken.modality} if taken.modality else {}),
        "id_key_fingerprint": before.key.fingerprint,
    }
    has_rules = taken.rules != SelectParams()
    item = BatchParams(
        source=RegisteredSourceParams.from_params(values, f"batch {name}"),
        select=taken.rules if has_rules else None,
        selected=taken.selection.counts if has_rules else None,
        measured=survey.measured,
        grid=before.grid,
        shard=before.shard,
    )
    if taken.on_file is not None and _delivered(taken.on_file) == _delivered(item):
        return taken.on_file
    return item


def _check_unchanged(name: str, before: _Before, taken: _Taken, item: BatchParams) -> None:
    """Refuse other images under a name that is taken: a batch never changes.

    Raises:
        ConfigError: a batch of this name is, or was, registered with other files, labels, patients or settings.
    """
    known, manifest = before.batches.get(name), before.project.root / _dep(name)
    if known is not None and _delivered(known) != _delivered(item):
        raise ConfigError(
            f"batch {name} exists with other files, labels, patients or settings, or was registered with other "
            "options (--select, --splits, --sex, --site); a batch never changes: choose another name, as its "
            f"number + 1{_hint_of_patients(manifest, taken.listing)}"
        )
    if known is None and manifest.is_file() and manifest.read_text(encoding="utf-8") != taken.manifest:
        raise ConfigError(
            f"{manifest}: a batch {name} was registered before, with other files, labels, patients or settings; a "
            "batch never changes: choose another name, or remove that file if the batch is no longer needed"
        )


def _write(request: _Request, before: _Before, taken: _Taken, change: _Change) -> list[Path]:
    """Write the files of the batch, then those of the project.

    Returns:
        The copies that were made of the project's files as they were.

    Raises:
        NoSpaceError: the disk is full.
    """
    name, project = request.name, before.project
    copies = []
    with clear_when_full(project.root):
        make_private_folder(project.root / MANIFESTS)
        write_private_text(project.root / _dep(name), taken.manifest)
        write_private_text(root_path(name, project.root), portable(request.root, project.root) + "\n")
        _list_left_out(_left_out_path(name, project), change.left_out)
        if name not in before.batches:
            write_text(batch_path(name, project.root), format_batch(name, change.item))
        for path, text in ((project.params, change.params), (project.dvc, change.dvc)):
            if request.only and text != change.texts[path] and (copy := _path_of_copy(path, name, before, change)):
                copies.append(copy)
                write_text(copy, change.texts[path])
        # A batch comes before what depends on it and goes after: a kill at any moment leaves a graph that runs.
        write_text(project.params, change.with_batch)
        write_text(project.dvc, change.dvc)
        write_text(project.params, change.params)
    return copies


def _path_of_copy(path: Path, name: str, before: _Before, change: _Change) -> Path | None:
    """Return where a file of the project is kept as it was; None where a call that was killed has kept it already.

    A copy is not written over one of another text: it gets the first number from 2 that is free.
    """
    text, first = change.texts[path], path.with_name(f"{path.name}.before-{name}")
    if name in before.batches and first.exists() and text == _entered(first, name, change.mix):
        return None
    numbered = (path.with_name(f"{first.name}-{number}") for number in count(2))
    copies = chain([first], numbered)
    return next(copy for copy in copies if not copy.exists() or copy.read_text(encoding="utf-8") == text)


def _report(
    request: _Request, before: _Before, taken: _Taken, survey: Survey, change: _Change, copies: Sequence[Path]
) -> None:
    """Say what was understood, everything that may be wrong with it, and what to do next."""
    name, project, listing = request.name, before.project, taken.listing
    for warning in listing.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    warn_of_published_key(before.key.fingerprint)
    report_selection(listing.records, taken.rules, taken.selection, taken.kind, unattended=request.unattended)
    if change.left_out:
        report_left_out(taken.growth, len(change.left_out), _left_out_path(name, project))
    namesakes = {}
    if request.site is None:
        namesakes = _namesakes(listing, taken.site, before.kept, taken.settled, before.key)
    report_patients(name, listing, taken.growth, taken.kind, namesakes, unattended=request.unattended)
    report_excluded_patients(name, taken.delivery, before.batches, project, unattended=request.unattended)
    grouping = f"patient_grouping: {listing.patient_grouping}"
    if taken.site and listing.patient_grouping == "patient":
        grouping += f", site: {taken.site}"
    report_batch(
        name,
        taken.delivery,
        survey,
        grouping,
        is_known=name in before.batches,
        mix=change.mix,
        shared=change.shared,
        takes_grey=takes_grey(before.values),
        unattended=request.unattended,
    )
    if change.mix is not None:
        report_mixture({**before.kept, name: change.item}, before.values, name)
    if request.only:
        report_only(name, sorted(set(before.batches) - {name}), copies)
    elif not request.unattended:
        print("now run `dvc repro`", file=sys.stderr)


def _dep(name: str) -> str:
    """Return the path of a batch's manifest below the project, as params.yaml has it."""
    return (MANIFESTS / f"{name}.jsonl").as_posix()


def _left_out_path(name: str, project: Project) -> Path:
    """Return the path of the private list of files that are left out."""
    return project.root / MANIFESTS / f"{name}.left_out.csv"


def _delivered(batch: BatchParams) -> dict[str, Any]:
    """Return what a batch was delivered with; what a person keeps of it is no part of that."""
    return batch.source.model_dump(exclude={"keep_sha256"})


def _check_weight(
    name: str, weight: float | None, batches: Mapping[str, BatchParams], values: Mapping[str, Any], project: Project
) -> None:
    """Compare a given weight with that of a batch that is registered already.

    The weight in params.yaml is the user's, and the same command may be given again after it was edited there.

    Raises:
        ConfigError: one of them is 0, so that the batch would be trained on or not.
    """
    mixes = values.get("mix") or {}
    found = mixes[name]["weight"] if name in mixes else 0.0
    if name not in batches or weight is None or weight == found:
        return
    if not weight or not found:
        raise ConfigError(
            f"--weight {weight:g}: batch {name} is registered with the weight {found:g}; take the batch out "
            f"(`python -m shards remove {name}`) and give this command again"
        )
    print(f"{project.params} keeps the weight {found:g} of {name} (mix.{name}.weight)", file=sys.stderr)


def _mix_of(
    item: BatchParams,
    name: str,
    weight: float | None,
    values: Mapping[str, Any],
    batches: Mapping[str, BatchParams],
    *,
    share: bool,
) -> tuple[Mapping[str, Any] | None, str | None]:
    """Make a batch's item of `mix`, and name the batch whose mean and std it shares.

    The item is None if the batch is not trained on.
    """
    mixes = values.get("mix") or {}
    if name in batches:
        return (dict(mixes[name]) if name in mixes else None), None
    if weight == 0:
        return None, None
    return mix_item(name, item, 1.0 if weight is None else weight, values, batches, share=share)


def _entered(copy: Path, name: str, mix: Mapping[str, Any] | None) -> str | None:
    """Return a kept copy with the batch, as a call leaves it that is killed next; None if it is no params file."""
    try:
        text = add_item(copy.read_text(encoding="utf-8"), "batches", name, _dep(name))
        return text if mix is None else add_item(text, "mix", name, mix)
    except ConfigError:
        return None


def _read(source: Source, root: Path) -> Listing:
    """Read the folder; an error of the system, whose own text names the file, is said without the name."""
    try:
        return source.read(root)
    except OSError as error:
        raise SourceError(
            f"{root}: a file below it cannot be read ({error.strerror}); expected all below it open to you: check "
            "their permissions"
        ) from None


def check_paths_fit(labels: Path, root: Path) -> None:
    """Find the folder that the paths of a CSV are relative to, where it is not the one that was given.

    Args:
        labels: The user's CSV.
        root: The folder that was given with it.

    Raises:
        SourceError: no row names a file below `root`, and rows name files below a folder beside or in it; or the
            permissions of `root`, or of a folder below it, hide whether a row does.
    """
    rows = list(read_label_rows(labels))
    rows = rows[:: -(-len(rows) // _MAX_COMPARED_ROWS)] if rows else []
    try:
        if not root.is_dir() or any((root / path).is_file() for path in rows):
            return
    except PermissionError as error:
        raise SourceError(
            f"{root}: the files that {labels} names cannot be looked up in it ({error.strerror}); expected that folder "
            "and all below it open to you: check their permissions"
        ) from None
    near = dict.fromkeys([*_subfolders(root), root.parent, labels.parent, *_subfolders(labels.parent)])
    fits = {folder: sum(is_file(folder / path) for path in rows) for folder in near}
    best = max(fits, key=lambda folder: fits[folder])
    if fits[best]:
        raise SourceError(
            f"{labels}: its paths fit the folder {best}, not {root}: give that folder "
            "instead, as the paths of the CSV are relative to it"
        )


def _subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder; none where they may not be looked up, so that no such folder is proposed."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except PermissionError:
        return []


def _check_test_patients(entries: Sequence[Entry], shard: ShardParams, values: Mapping[str, Any], root: Path) -> None:
    """Refuse a folder that the evaluation would refuse after the training.

    Raises:
        SourceError: fewer patients are in the test split than the evaluation compares with one another.
    """
    split = {entry.record.patient: split_of(entry.position, shard.splits, entry.splits) for entry in entries}
    evaluate = values.get("evaluate")
    properties = evaluate.get("properties") if isinstance(evaluate, Mapping) else None
    decomposition = properties.get("decomposition") if isinstance(properties, Mapping) else None
    if not isinstance(evaluate, Mapping) or not isinstance(decomposition, Mapping):
        return  # `python -m ace config check` says what is wrong with it, if something is
    measured, needed = evaluate.get("split", "test"), decomposition.get("num_candidates")
    found = list(split.values()).count(measured)
    if isinstance(needed, int) and found < needed:
        raise SourceError(
            f"{root}: {found} of its {len(split)} patients are in the {measured} split, and the evaluation compares "
            f"{needed} with one another (evaluate.properties.decomposition.num_candidates in params.yaml); give more "
            f"patients, raise shard.splits.{measured}, or choose a configuration that compares fewer"
        )


def _id_key(batches: Mapping[str, BatchParams]) -> IdKey:
    """Load the identity key of the batches there are; the first one decides."""
    for batch in batches.values():
        if isinstance(batch.source, RegisteredSourceParams):
            return load_id_key(batch.source.id_key_fingerprint)
    return read_id_key()


def _check_official_splits(listing: Listing, split_rule: SplitRule) -> None:
    """Refuse official splits that tear a patient apart, who would leak into the evaluation.

    Raises:
        SourceError: there is one.
    """
    if split_rule == "hash":
        return
    splits: dict[str, set[str | None]] = {}
    for record in listing.records:
        splits.setdefault(record.patient, set()).add(record.split)
    num_torn = sum(len(found) > 1 for found in splits.values())
    if num_torn:
        raise SourceError(
            f"{num_torn} of {len(splits)} patients have images in several official splits, or in one and in none; "
            "correct the lists, or register with --splits hash, which splits by patient"
        )


def _others(name: str, batches: Mapping[str, BatchParams], project: Project) -> Iterator[Registered]:
    """Yield all batches but one that have manifests: those before it in params.yaml are earlier."""
    is_earlier = True
    for other, source in _registered(batches).items():
        if other == name:
            is_earlier = False
        else:
            dep, root = project.root / source.dep, project.root / source.root
            yield Registered(name=other, kind=source.kind, manifest=dep, root=root, is_earlier=is_earlier)


def _registered(batches: Mapping[str, BatchParams]) -> dict[str, RegisteredSourceParams]:
    return {name: batch.source for name, batch in batches.items() if isinstance(batch.source, RegisteredSourceParams)}


def _modality_of(
    given: str | None, kind: str, site: str, on_file: BatchParams | None, batches: Mapping[str, BatchParams]
) -> str | None:
    """Tell the kind of pictures of a user's own images: that of the batch's file, else of earlier ones of the site.

    Raises:
        ConfigError: it is no word, or one is given for a public dataset.
    """
    if given is not None:
        if kind not in OWN_KINDS:
            raise ConfigError(
                f"--modality belongs to --source {' or '.join(OWN_KINDS)}; the kind of pictures in {kind} is known: "
                "leave the option out"
            )
        if not re.fullmatch(MODALITY, given):
            raise ConfigError(f"--modality '{given}': expected one word in lower case, as chest, fundus or hand")
        return given
    own = [on_file.source] if on_file is not None else list(_registered(batches).values())
    found = [source for source in own if isinstance(source, RegisteredSourceParams) and source.kind in OWN_KINDS]
    return next((source.modality for source in reversed(found) if source.site == site), None)


def _site_of(
    given: str | None, name: str, root: Path, kind: str, batches: Mapping[str, BatchParams], project: Project
) -> str:
    """Tell the site of a user's own images; public datasets have their own name before their patients' ids.

    Raises:
        ConfigError: as `choose_site`, or one is given for a public dataset.
    """
    if kind in OWN_KINDS:
        return choose_site(given, name, root, _registered(batches), project.root)
    if given is not None:
        raise ConfigError(
            f"{SITE_OPTION} belongs to --source {' or '.join(OWN_KINDS)}; {kind} names its own patients: leave the "
            "option out"
        )
    return ""


def _namesakes(
    listing: Listing, site: str, batches: Mapping[str, BatchParams], settled: Settled, key: IdKey
) -> dict[str, int]:
    """Count, for each other site, the patients of the listing who have the id of one of its patients."""
    if listing.patient_grouping == "image":
        return {}
    sites = {source.site for source in _registered(batches).values() if source.kind in OWN_KINDS}
    return count_namesakes({record.patient for record in listing.records}, site, sites, settled.splits.keys(), key)


def _hashed(records: Sequence[Record], root: Path, settled: Settled, left_out: Mapping[str, str]) -> tuple[Record, ...]:
    """Add size and hash of every selected file to the records.

    Images that are unchanged since another batch registered them, and their masks, are not read again.
    """
    unselected = {record.image.path: record.image for record in records if record.image.path in left_out}
    unchanged = {**unchanged_files(root, settled), **unselected}
    new = [record for record in records if record.image.path not in unchanged]
    found = iter(progress(hashed(new, root), total=len(new), description="hash", unit="image"))
    return tuple(
        replace(record, image=unchanged[record.image.path]) if record.image.path in unchanged else next(found)
        for record in records
    )


def _is_of(batch: BatchParams, manifest: str) -> bool:
    """Tell whether a batch's file names this manifest."""
    return isinstance(batch.source, RegisteredSourceParams) and batch.source.dep_sha256 == _sha256(manifest)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hint_of_patients(manifest: Path, listing: Listing) -> str:
    """Say what helps where the batch was registered with patients that nobody had given."""
    if listing.patient_grouping == "patient" or not manifest.is_file():
        return ""
    if iterate_manifest(manifest)[0].patient_grouping == "image":
        return ""
    return (
        ". It has patients, and this command gives none: earlier versions took them from the names of folders and "
        f"files; {PATIENT_OPTION} '{_FORMER_RULE}' takes them again"
    )


def _left_out(listing: Listing, growth: Growth, root: Path, kind: str) -> dict[str, str]:
    """Return the path of every file that is left out → why; of a public dataset's files, the images."""
    found = {**listing.left_out, **growth.left_out}
    if kind not in OWN_KINDS:
        used = {file.path for record in listing.records for file in files_of(record)}
        paths = (path for path in list_files(root) if path.lower().endswith(SUFFIXES) and path not in used)
        found = dict.fromkeys(paths, _IN_NO_LIST) | found
    return found


def _list_left_out(path: Path, left_out: Mapping[str, str]) -> None:
    """Write the private list of files that are left out; there is none where none is."""
    if not left_out:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "reason"), *sorted(left_out.items())])
    # Names that are not Unicode cannot stand in a text.
    write_private_text(path, text.getvalue().encode("utf-8", "backslashreplace").decode())
