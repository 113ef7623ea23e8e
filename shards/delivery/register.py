"""Register a delivery of images as a new batch: a manifest, the file batches/NAME.yaml, and its part in the graph."""

import csv
import hashlib
import io
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int

from shards.canvas import Placement, cell_statistics, foreground_sums, is_coloured, with_channels
from shards.config import read_params
from shards.decode import UnreadableImageError, decode
from shards.decode.annotations import OTHER_SIZE, has_coordinates, misfit_of
from shards.decode.patience import read_patiently
from shards.delivery.batches import batch_path, format_batch, read_batch, read_batches, root_path, settings_of
from shards.delivery.earlier_batches import Growth, Registered, Settled, grow, read_settled, unchanged_files
from shards.delivery.exclusion import read_exclusion, record_dep, record_path
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
from shards.delivery.project import Project, portable
from shards.delivery.published_key import warn_of_published_key
from shards.delivery.selection import OPTION as SELECT_OPTION
from shards.delivery.selection import Selection, describe, describe_mixture, select_images, select_of
from shards.delivery.sites import OPTION as SITE_OPTION
from shards.delivery.sites import choose_site, count_namesakes
from shards.delivery.yaml_lines import SHARDS, add_deps, add_item, consumers, drop_deps, keep_items, set_dep, set_value
from shards.errors import ConfigError, SourceError
from shards.format.layout import MANIFESTS
from shards.identity import IdKey, load_id_key, read_id_key, split_of
from shards.normalisation import Normalisation, as_written
from shards.params import (
    BatchParams,
    GridParams,
    MeasuredParams,
    RegisteredSourceParams,
    SelectParams,
    ShardParams,
    SourceKind,
    check_batch_name,
)
from shards.records import Record, files_of
from shards.runtime.atomic import clear_when_full, make_private_folder, write_private_text, write_text
from shards.runtime.progress import progress
from shards.sources.base import OWN_KINDS, Listing, Source
from shards.sources.datasets.folder import read_label_rows
from shards.sources.files import is_file, list_files
from shards.sources.images import SUFFIXES
from shards.sources.modality import check_mixture
from shards.sources.patients import OPTION as PATIENT_OPTION

PHANTOM = "data/phantom"
Normalize = Literal["shared", "own"]
_MAX_SAMPLED = 256
_DECIMALS = 4
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
    has_sex: bool = False,
    site: str | None = None,
    only: bool = False,
    normalize: Normalize = "shared",
    select: Mapping[str, Any] | None = None,
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
        name: Of the batch, as `clinic-b000`.
        root: The folder.
        source: Reads it.
        weight: Share in training; 1, which None stands for, shows each image once per epoch. 0 leaves the batch out of
            the section `mix` and of what training depends on: a set to measure on.
        split_rule: `official` keeps the dataset's own splits where it has them, `hash` splits patients by their hash.
        has_sex: Whether the shards say the patients' sex.
        site: Who gave the patients of your own images their ids; None: as `shards.delivery.sites.choose_site` tells.
        only: Take every other batch out of the project.
        normalize: `shared`: the mean and std of an earlier batch of the mix with the same source, site and channels, so
            that one model has one normalisation for all of them; `own`: those of the batch's own images.
        select: Which images of the folder the batch takes (`shards.delivery.selection.parse_select`); None: as the
            batch's file says, or of a new batch of chest radiographs the frontal views.
        project: Where params.yaml and dvc.yaml are.

    Raises:
        ConfigError: the name is taken by other files or unfit, the batch is registered with a part in training and the
            weight is 0, or the other way round, the files of the project are not as expected, or the only batch would
            have no part in training.
        SourceError: the folder is not as the source expects, no image in it is selected or can be read, or, with
            `only`, it has too few test patients to measure on.
        IdKeyError: there is no identity key, or another one than the project's.
    """
    project = project or Project()
    check_batch_name(name)
    if source.info.name not in get_args(SourceKind):
        raise ConfigError(
            f"--source {source.info.name}: built in, and no folder to register: its stage makes it (`python -m shards "
            "phantom`), and a new project has it as the batch phantom-b000; expected another of `python -m shards "
            "sources`"
        )
    if only and weight == 0:
        raise ConfigError(f"the only batch {name} would have the weight 0: nothing to train on; expected one above 0")
    with project.editing():
        values = read_params(project.params)
        if not project.dvc.is_file():
            raise ConfigError(f"{project.dvc}: no such file; run from the project's root or pass --dvc FILE")
        grid, shard = settings_of(values, project.params)
        batches = read_batches(project.params, values)
        if only and name in batches and name not in (values.get("mix") or {}):
            raise ConfigError(
                f"batch {name} has no part in training, so it cannot be the only one; give it one in {project.params}: "
                f"mix.{name}: {{weight: 1.0, mean: …, std: …}}"
            )
        _check_weight(name, weight, batches, values, project)
        kept = {other: batch for other, batch in batches.items() if other == name or not only}
        key = _id_key(kept)

        kind = source.info.name
        own_site = _site_of(site, name, root, kind, kept, project)
        listing = _read(source, root)
        check_records(listing.records, str(root))
        _check_official_splits(listing, split_rule)
        known = batches.get(name)
        # A batch that was taken out has its file still: it comes back as it was, with its settings and its keep list.
        on_file = known or (read_batch(name, project.root) if batch_path(name, project.root).is_file() else None)
        rules = select_of(select or {}, kind, listing.records)
        if select is None and on_file is not None:
            rules = on_file.select or SelectParams()
        selection = select_images(listing.records, rules, select or (), kind, str(root))
        settled = read_settled(root, _others(name, kept, project))
        listing = replace(listing, records=_hashed(listing.records, root, settled, selection.left_out))

        def deliver(*, is_former: bool) -> tuple[Delivery, Growth, str]:
            whole = identify(
                listing, kind, key, split_rule=split_rule, has_sex=has_sex, site=own_site, is_former=is_former
            )
            taken = [entry for entry in whole.entries if entry.record.image.path not in selection.left_out]
            growth = grow(taken, kind, root, settled)
            header = replace(whole.header, num_images=len(growth.entries))
            delivery = Delivery(header, growth.entries)
            return delivery, growth, "".join(format_manifest(delivery))

        delivery, growth, manifest = deliver(is_former=False)
        if on_file is not None and not _is_of(on_file, manifest):
            former = deliver(is_former=True)
            if _is_of(on_file, former[-1]):
                delivery, growth, manifest = former
        if only:
            _check_test_patients(growth.entries, shard, values, root)
        dep = (MANIFESTS / f"{name}.jsonl").as_posix()
        survey = survey_images(root, [entry.record for entry in growth.entries], grid, shard)
        source_values = {
            "kind": kind,
            "dep": dep,
            "dep_sha256": _sha256(manifest),
            "channels": survey.channels,
            "shares_images_with": list(listing.shares_images_with),
            **({"site": own_site} if own_site else {}),
            "id_key_fingerprint": key.fingerprint,
        }
        item = BatchParams(
            source=RegisteredSourceParams.from_params(source_values, f"batch {name}"),
            select=None if rules == SelectParams() else rules,
            selected=None if rules == SelectParams() else selection.counts,
            measured=survey.measured,
            grid=grid,
            shard=shard,
        )
        if on_file is not None and _delivered(on_file) == _delivered(item):
            item = on_file
        earlier = project.root / dep
        if known is not None and _delivered(known) != _delivered(item):
            raise ConfigError(
                f"batch {name} exists with other files, labels, patients or settings, or was registered with other "
                "options (--select, --splits, --sex, --site); a batch never changes: choose another name, as its "
                f"number + 1{_hint_of_patients(earlier, listing)}"
            )
        if known is None and earlier.is_file() and earlier.read_text(encoding="utf-8") != manifest:
            raise ConfigError(
                f"{earlier}: a batch {name} was registered before, with other files, labels, patients or settings; a "
                "batch never changes: choose another name, or remove that file if the batch is no longer needed"
            )
        mix, shared = _mix_of(item, name, weight, values, kept, is_shared=normalize == "shared")
        before = {path: path.read_text(encoding="utf-8") for path in (project.params, project.dvc)}
        with_batch, dvc_text = before[project.params], before[project.dvc]
        if known is None:
            with_batch = add_item(with_batch, "batches", name, dep)
            with_batch = with_batch if mix is None else add_item(with_batch, "mix", name, mix)
        if mix is not None:
            dvc_text = add_deps(dvc_text, name)
        params_text = with_batch
        if only:
            params_text = keep_items(keep_items(with_batch, "batches", [name]), "mix", [name])
            params_text = set_value(params_text, "evaluate", "batch", name)
            others = {batch for found in consumers(dvc_text).values() for batch in found} - {name}
            dvc_text = drop_deps(dvc_text, {PHANTOM} | {SHARDS + other for other in others})
            for other in set(batches) - {name}:
                dvc_text = set_dep(dvc_text, record_dep(other), other, is_there=False)
        is_excluded = record_path(name, project.root).is_file()  # of a batch that was taken out before
        dvc_text = set_dep(dvc_text, record_dep(name), name, is_there=is_excluded)
        copies = []
        left_out = {**_left_out(listing, growth, root, kind), **selection.left_out}
        with clear_when_full(project.root):
            make_private_folder(project.root / MANIFESTS)
            write_private_text(earlier, manifest)
            write_private_text(root_path(name, project.root), portable(root, project.root) + "\n")
            _list_left_out(project.root / MANIFESTS / f"{name}.left_out.csv", left_out)
            if known is None:
                write_text(batch_path(name, project.root), format_batch(name, item))
            for path, text in ((project.params, params_text), (project.dvc, dvc_text)):
                place = path.with_name(f"{path.name}.before-{name}")
                is_kept = known is not None and place.exists() and before[path] == _entered(place, name, dep, mix)
                if only and text != before[path] and not is_kept:
                    copies.append(_place_of_copy(place, before[path]))
                    write_text(copies[-1], before[path])
            # A batch comes before what depends on it and goes after: a kill at any moment leaves a graph that runs.
            write_text(project.params, with_batch)
            write_text(project.dvc, dvc_text)
            write_text(project.params, params_text)
        for warning in listing.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        warn_of_published_key(key.fingerprint)
        _report_selection(listing.records, rules, selection, kind)
        if left_out:
            _report_left_out(growth, len(left_out), project.root / MANIFESTS / f"{name}.left_out.csv")
        namesakes = {} if site is not None else _namesakes(listing, own_site, kept, settled, key)
        _report_patients(name, listing, growth, kind, namesakes)
        _report_excluded_patients(name, delivery, batches, project)
        grouping = f"patient_grouping: {listing.patient_grouping}"
        if own_site and listing.patient_grouping == "patient":
            grouping += f", site: {own_site}"
        _report(
            name,
            delivery,
            survey,
            grouping,
            is_known=known is not None,
            mix=mix,
            shared=shared,
            takes_grey=_takes_grey(values),
        )
        if mix is not None:
            _report_mixture({**kept, name: item}, values, name)
        if only:
            _report_only(name, sorted(set(batches) - {name}), copies)
        else:
            print("now run `dvc repro`", file=sys.stderr)


@dataclass(frozen=True)
class Survey:
    """What the images of a delivery look like.

    Attributes:
        channels: 3 if any is coloured.
        normalisation: Mean and deviation of the foreground, in [0, 1]; of coloured images those of each channel.
        in_grey: Mean and deviation of the foreground, in [0, 1], as a network of one channel sees the images.
        unread: Why images cannot be read → how many of those that were looked at.
        num_images: Images that were looked at.
    """

    channels: int
    normalisation: Normalisation
    in_grey: Normalisation
    unread: Counter[str]
    num_images: int

    @property
    def measured(self) -> MeasuredParams:
        """Mean and deviation as a batch's file has them."""
        grey = self.in_grey if self.channels == 3 else Normalisation((), ())
        return MeasuredParams(
            mean=self.normalisation.mean,
            std=self.normalisation.std,
            grey_mean=next(iter(grey.mean), None),
            grey_std=next(iter(grey.std), None),
        )


def survey_images(root: Path, records: Sequence[Record], grid: GridParams, shard: ShardParams) -> Survey:
    """Look at up to 256 images spread evenly over the delivery; unreadable ones are counted, and left to `shard`.

    Raises:
        SourceError: none can be read, none has any foreground, or boxes, landmarks and polygons do not fit most images
            that have some.
    """
    chosen = records[:: -(-len(records) // _MAX_SAMPLED)]
    fit = _Fit()
    max_pixels = shard.max_source_megapixels * 1e6
    over_channels, of_channels, in_grey = _Sums(1), _Sums(3), _Sums(1)
    unread = Counter[str]()
    has_colour = False
    for record in progress(chosen, total=len(chosen), description="look", unit="image"):
        if record.known_defect is not None:
            unread[record.known_defect] += 1
            continue
        try:
            data = read_patiently(root / record.image.path, max_pixels)
            image = decode(data, max_pixels=max_pixels, raw=record.raw).pixels
        except OSError as error:  # whose own text names the file
            unread[error.strerror or "not readable"] += 1
            continue
        except UnreadableImageError as error:
            unread[str(error)] += 1
            continue
        fit.add(record, image.shape[:2])
        canvas = Placement.of(image, grid.spec.canvas_px, grid.trim_level).place_image(image)
        cells = cell_statistics(canvas, grid.spec, shard.foreground)
        over_channels.add(np.array([[cells.total], [cells.total_squares]]), cells.num_values)
        num_pixels = int(cells.foreground.sum()) * grid.spec.cell_px**2
        of_channels.add(foreground_sums(canvas, cells.foreground, grid.spec), num_pixels)
        in_grey.add(foreground_sums(with_channels(canvas, 1), cells.foreground, grid.spec), num_pixels)
        has_colour = has_colour or is_coloured(image)
    num_unread = unread.total()
    if num_unread == len(chosen):
        raise SourceError(f"{root}: looked at {len(chosen)} images, none can be read:{_listed(unread)}")
    if not over_channels.num_values:
        raise SourceError(
            f"{root}: looked at {len(chosen)} images, could read {len(chosen) - num_unread} and found no foreground in "
            f"them (shard.foreground); expected image files with something in them{_listed(unread)}"
        )
    fit.check(root)
    grey = in_grey.normalisation() if has_colour else over_channels.normalisation()
    own = of_channels.normalisation() if has_colour else grey
    return Survey(3 if has_colour else 1, own, grey, unread, len(chosen))


def _listed(reasons: Counter[str]) -> str:
    """A line for each reason with its number, the most frequent first."""
    return "".join(f"\n{number:6}  {reason}" for reason, number in reasons.most_common())


class _Fit:
    """Whether the coordinates that records have fit their images."""

    def __init__(self) -> None:
        self.num_images = 0
        self.misfits: list[str] = []

    def add(self, record: Record, size: tuple[int, int]) -> None:
        """Compare one record with the (height, width) of its image; one without coordinates does not count."""
        if not has_coordinates(record):
            return
        self.num_images += 1
        misfit = misfit_of(record, size)
        if misfit is not None:
            stated = f" of {record.size[0]} x {record.size[1]} pixels" if record.size and misfit == OTHER_SIZE else ""
            self.misfits.append(f"an image of {size[0]} x {size[1]} pixels, coordinates {misfit}{stated}")

    def check(self, root: Path) -> None:
        """Refuse coordinates that fit few images; a few misfits are a warning, for the stage `shard` leaves them out.

        Raises:
            SourceError: most images that have coordinates are of another size.
        """
        if not self.misfits:
            return
        found = (
            f"{root}: boxes, landmarks or polygons do not fit {len(self.misfits)} of the {self.num_images} images that "
            f"have some and were looked at, first {self.misfits[0]}"
        )
        if 2 * len(self.misfits) > self.num_images:
            raise SourceError(
                f"{found}; expected the published images, of which no copy was resized or cropped: register those, or "
                "use the copies without coordinates, with --source folder and a CSV of labels"
            )
        print(f"warning: {found}; the shards will not have them, and count them", file=sys.stderr)


def _delivered(batch: BatchParams) -> dict[str, Any]:
    """What a batch was delivered with; what a person keeps of it is no part of that."""
    return batch.source.model_dump(exclude={"keep_sha256"})


def _check_weight(
    name: str, weight: float | None, batches: Mapping[str, BatchParams], values: Mapping[str, Any], project: Project
) -> None:
    """Hold a weight against that of a registered batch, which is the user's, in params.yaml: the same command may come
    again after it was edited there.

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
    is_shared: bool,
) -> tuple[dict[str, Any] | None, str | None]:
    """A batch's item of `mix`, None where it has no part in training; and the batch whose mean and std it shares."""
    own = item.measured.normalisation(1 if _takes_grey(values) else item.source.channels)
    mixes = values.get("mix") or {}
    if name in batches:
        return (dict(mixes[name]) if name in mixes else None), None
    if weight == 0:
        return None, None
    weight = 1.0 if weight is None else weight
    alike = [other for other, batch in batches.items() if other in mixes and other != name and _is_alike(batch, item)]
    if is_shared and alike:
        levels = {key: mixes[alike[0]][key] for key in ("mean", "std")}
        return {"weight": weight, **levels}, alike[0]
    return {"weight": weight, "mean": as_written(own.mean), "std": as_written(own.std)}, None


def _is_alike(one: BatchParams, other: BatchParams) -> bool:
    """Whether two batches are of one source, site and number of channels."""
    keys = ("kind", "site", "channels")
    return all(getattr(one.source, key, None) == getattr(other.source, key, None) for key in keys)


def _entered(copy: Path, name: str, dep: str, mix: Mapping[str, Any] | None) -> str | None:
    """Return a kept copy with the batch, as a call leaves it that is killed next; None if it is no params file."""
    try:
        text = add_item(copy.read_text(encoding="utf-8"), "batches", name, dep)
        return text if mix is None else add_item(text, "mix", name, mix)
    except ConfigError:
        return None


def _read(source: Source, root: Path) -> Listing:
    """What the source finds; an error of the system, whose own text names the file, is said without the name."""
    try:
        return source.read(root)
    except OSError as error:
        raise SourceError(
            f"{root}: a file below it cannot be read ({error.strerror}); expected all below it open to you: check "
            "their permissions"
        ) from None


def _place_of_copy(path: Path, text: str) -> Path:
    """Return the path, or with the first number from 2 that does not write over an earlier copy of another text."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(
        place for place in chain([path], numbered) if not place.exists() or place.read_text(encoding="utf-8") == text
    )


def _takes_grey(values: Mapping[str, Any]) -> bool:
    """Whether the project's network has one channel, so that it sees coloured images in grey."""
    backbone = (values.get("pretrain") or {}).get("backbone") or {}
    return bool(backbone.get("in_channels") == 1)


class _Sums:
    """Grey levels and their squares are added up as whole numbers, so that their order does not matter."""

    def __init__(self, channels: int) -> None:
        self.sums = np.zeros((2, channels), np.int64)
        self.num_values = 0

    def add(self, sums: Int[np.ndarray, "2 channels"], num_values: int) -> None:
        """Add the sums of one image; a grey one counts the same in every channel."""
        self.sums += sums
        self.num_values += num_values

    def normalisation(self) -> Normalisation:
        """Mean and deviation of each channel, in [0, 1]; the deviation is at least one grey level."""
        totals, squares = self.sums.tolist()
        means = [total / self.num_values for total in totals]
        stds = [math.sqrt(max(sq / self.num_values - mean**2, 1.0)) for sq, mean in zip(squares, means, strict=True)]
        mean, std = (tuple(round(level / 255, _DECIMALS) for level in levels) for levels in (means, stds))
        return Normalisation(mean, std)


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
    """None where they may not be looked up: no such folder is proposed."""
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
    measured, needed = evaluate.get("split", "test"), decomposition.get("batch")
    found = list(split.values()).count(measured)
    if isinstance(needed, int) and found < needed:
        raise SourceError(
            f"{root}: {found} of its {len(split)} patients are in the {measured} split, and the evaluation compares "
            f"{needed} with one another (evaluate.properties.decomposition.batch in params.yaml); give more patients, "
            f"raise shard.splits.{measured}, or choose a configuration that compares fewer"
        )


def _id_key(batches: Mapping[str, BatchParams]) -> IdKey:
    """The key of the batches there are; the first one decides."""
    for batch in batches.values():
        if isinstance(batch.source, RegisteredSourceParams):
            return load_id_key(batch.source.id_key_fingerprint)
    return read_id_key()


def _check_official_splits(listing: Listing, split_rule: SplitRule) -> None:
    """A patient on both sides of an official split would leak into the evaluation.

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
    """All batches but one that have manifests: those before it in params.yaml are earlier."""
    is_earlier = True
    for other, source in _registered(batches).items():
        if other == name:
            is_earlier = False
        else:
            dep, root = project.root / source.dep, project.root / source.root
            yield Registered(other, source.kind, dep, root, is_earlier)


def _registered(batches: Mapping[str, BatchParams]) -> dict[str, RegisteredSourceParams]:
    return {name: batch.source for name, batch in batches.items() if isinstance(batch.source, RegisteredSourceParams)}


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
        raise ConfigError(f"{SITE_OPTION} belongs to --source {' or '.join(OWN_KINDS)}; {kind} names its own patients")
    return ""


def _namesakes(
    listing: Listing, site: str, batches: Mapping[str, BatchParams], settled: Settled, key: IdKey
) -> dict[str, int]:
    """Other site → how many patients of the listing have the id of one of its patients."""
    if listing.patient_grouping == "image":
        return {}
    sites = {source.site for source in _registered(batches).values() if source.kind in OWN_KINDS}
    return count_namesakes({record.patient for record in listing.records}, site, sites, settled.splits.keys(), key)


def _hashed(records: Sequence[Record], root: Path, settled: Settled, left_out: Mapping[str, str]) -> tuple[Record, ...]:
    """The same with size and hash of every file that is selected; images that lie there as another batch registered
    them are not read again, and neither are their masks."""
    unselected = {record.image.path: record.image for record in records if record.image.path in left_out}
    unchanged = {**unchanged_files(root, settled), **unselected}
    new = [record for record in records if record.image.path not in unchanged]
    found = iter(progress(hashed(new, root), total=len(new), description="hash", unit="image"))
    return tuple(
        replace(record, image=unchanged[record.image.path]) if record.image.path in unchanged else next(found)
        for record in records
    )


def _is_of(batch: BatchParams, manifest: str) -> bool:
    """Whether a batch's file names this manifest."""
    return isinstance(batch.source, RegisteredSourceParams) and batch.source.dep_sha256 == _sha256(manifest)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hint_of_patients(manifest: Path, listing: Listing) -> str:
    """What helps where the batch was registered with patients that nobody had given."""
    if listing.patient_grouping == "patient" or not manifest.is_file():
        return ""
    if iterate_manifest(manifest)[0].patient_grouping == "image":
        return ""
    return (
        ". It has patients, and this command gives none: earlier versions took them from the names of folders and "
        f"files; {PATIENT_OPTION} '{_FORMER_RULE}' takes them again"
    )


def _left_out(listing: Listing, growth: Growth, root: Path, kind: str) -> dict[str, str]:
    """Path of every file that is left out → why; of a public dataset, of the images among them."""
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


def _report_selection(records: Sequence[Record], rules: SelectParams, selection: Selection, kind: str) -> None:
    """Say which images were taken, or that a rule would tell several kinds of them apart."""
    if rules != SelectParams():
        num_taken = len(records) - len(selection.left_out)
        print(f"selected: {num_taken:,} of {len(records):,} images{describe(selection, rules)}", file=sys.stderr)
        if "view" in selection.counts.left_out:
            print(f"to take images of every view: {SELECT_OPTION} view=any", file=sys.stderr)
    elif mixture := describe_mixture(records, kind):
        print(f"warning: {mixture}", file=sys.stderr)


def _report_left_out(growth: Growth, num_left_out: int, listed: Path) -> None:
    """Say what is left out, and where it is listed."""
    if growth.copies:
        batches = ", ".join(f"{batch} has {number}" for batch, number in growth.copies.items())
        print(
            f"{growth.copies.total()} images are in earlier batches and are left out, whatever their files are called: "
            f"{batches}",
            file=sys.stderr,
        )
    print(f"files left out, {num_left_out} with their reasons, for you alone: {listed}", file=sys.stderr)


def _report_excluded_patients(name: str, delivery: Delivery, batches: Iterable[str], project: Project) -> None:
    """Warn of new images of patients who are excluded of other batches, as after a withdrawal of their consent."""
    excluded = {patient for other in batches for patient in read_exclusion(other, project.root).patients}
    excluded -= read_exclusion(name, project.root).patients
    found = sorted({entry.record.patient for entry in delivery.entries} & excluded)
    if found:
        command = " ".join(f"--patient {patient}" for patient in found)
        print(
            f"warning: {name} has images of {len(found)} patients who are excluded of other batches; `python -m shards "
            f"exclude {name} {command}` excludes them here too",
            file=sys.stderr,
        )


def _report_patients(name: str, listing: Listing, growth: Growth, kind: str, namesakes: Mapping[str, int]) -> None:
    """Say how far patients are known, and which of them other batches have."""
    if listing.patient_grouping == "image":
        remedy = f"; give them in the column patient of a CSV (--labels) or by {PATIENT_OPTION}"
        print(
            "warning: patients are unknown, every image stands alone in the split: images of one patient may be in "
            "training and in the test; the index says so (patient_grouping: image)"
            f"{remedy if kind in OWN_KINDS else ''}",
            file=sys.stderr,
        )
    for other in listing.shares_images_with:
        print(
            f"warning: some images are also in {other}, and nothing here tells which (docs/register.md)",
            file=sys.stderr,
        )
    for site, number in namesakes.items():
        print(
            f"warning: {number} patients have the ids of patients of "
            f"{f'the site {site}' if site else 'batches without a site'} and are taken for other people; if they are "
            f"the same, they may be in training and in the test: take the batch out (`python -m shards remove {name}`, "
            f"and its manifest) and register it with {SITE_OPTION} {site or repr('')}",
            file=sys.stderr,
        )
    if growth.num_old:
        print(f"{growth.num_old} patients are in earlier batches too, and keep their splits", file=sys.stderr)
    if growth.num_kept:
        print(
            f"warning: {growth.num_kept} patients are in earlier batches and keep the splits that they have there, not "
            "those that the dataset's lists or --splits would now give them",
            file=sys.stderr,
        )


def _report(
    name: str,
    delivery: Delivery,
    survey: Survey,
    grouping: str,
    *,
    is_known: bool,
    mix: Mapping[str, Any] | None,
    shared: str | None,
    takes_grey: bool,
) -> None:
    """Say what was understood, and everything that may be wrong with it."""
    if survey.unread:
        print(
            f"warning: looked at {survey.num_images} images, {survey.unread.total()} cannot be read and will be "
            f"quarantined:{_listed(survey.unread)}",
            file=sys.stderr,
        )
    num_patients = len({entry.record.patient for entry in delivery.entries})
    patients = f" of {num_patients} patients" if delivery.header.patient_grouping == "patient" else ""
    verb = "already registered" if is_known else "registered"
    written, otherwise = survey.normalisation, survey.in_grey
    if takes_grey:
        written, otherwise = otherwise, written
    mean, std = (as_written(levels) for levels in written)
    print(
        f"{verb}: {name}, {len(delivery.entries)} images{patients} ({grouping}), {survey.channels} channel(s), "
        f"mean {mean}, std {std}",
        file=sys.stderr,
    )
    if mix is None:
        print(
            f"{name} is no part of the training mix; `python -m ace evaluate --batch {name}` measures on it",
            file=sys.stderr,
        )
        return
    if shared is not None:
        print(
            f"{name} is normalised as {shared} is, by mean {mix['mean']} and std {mix['std']}, so that a model has one "
            f"normalisation for both; to use its own, write it to mix.{name} in params.yaml",
            file=sys.stderr,
        )
    elif (mix["mean"], mix["std"]) != (mean, std):
        print(
            f"params.yaml keeps mean {mix['mean']}, std {mix['std']} for it: those of another batch, measured with "
            f"other parameters, or written by hand; to use what is measured now, write it to mix.{name}",
            file=sys.stderr,
        )
    if survey.channels == 3:
        mean, std = (as_written(levels) for levels in otherwise)
        seen, channels = ("in grey", 3) if takes_grey else ("in colour", 1)
        print(
            f"the project's network sees these images {seen}; for pretrain.backbone.in_channels {channels}, set mean "
            f"{mean} and std {std} in mix.{name}",
            file=sys.stderr,
        )


def _report_mixture(batches: Mapping[str, BatchParams], values: Mapping[str, Any], new: str) -> None:
    """Say at once what training would refuse."""
    mixed = {*(values.get("mix") or {}), new}
    pictures = {name: (batch.source.kind, batch.source.channels) for name, batch in batches.items() if name in mixed}
    try:
        check_mixture(pictures, is_accepted=bool((values.get("pretrain") or {}).get("accept_mixed_images")))
    except ConfigError as error:
        print(f"warning: {error}", file=sys.stderr)


def _report_only(name: str, others: Sequence[str], copies: Sequence[Path]) -> None:
    """Say what the project no longer has, and where to find it."""
    if others:
        print(
            f"taken out of params.yaml and dvc.yaml: {', '.join(others)}; their shards and manifests stay on the disk",
            file=sys.stderr,
        )
    if copies:
        print(f"what the files were before is kept: {', '.join(map(str, copies))}", file=sys.stderr)
    print(f"{name} is the project's only batch: `dvc repro report` runs what it needs", file=sys.stderr)
