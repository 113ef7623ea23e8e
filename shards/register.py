"""Register a delivery of images as a new batch: a manifest, an item of `batches`, a dep line for every consumer."""

import hashlib
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from shards.annotations import OTHER_SIZE, has_coordinates, misfit_of
from shards.atomic import clear_when_full, make_private_folder, write_private_text, write_text
from shards.canvas import Placement, cell_statistics, foreground_sums, is_coloured, with_channels
from shards.config import read_params
from shards.decode import UnreadableImageError, decode
from shards.delivery import Delivery, Entry, SplitRule, check_records, format_manifest, hashed, identify
from shards.errors import ConfigError, SourceError
from shards.growth import Growth, Registered, grow, read_settled
from shards.identity import IdKey, load_id_key, read_id_key, split_of
from shards.image_names import MANIFESTS
from shards.normalisation import Normalisation, as_written
from shards.params import BatchParams, GridParams, RegisteredSourceParams, ShardParams, check_batch_name, parse_batches
from shards.progress import progress
from shards.project import Project
from shards.published_key import warn_of_published_key
from shards.records import Record
from shards.sample import read_patiently
from shards.sources.base import Listing, Source
from shards.sources.files import is_file
from shards.sources.folder import read_label_rows
from shards.yaml_lines import SHARDS, add_deps, add_item, consumers, drop_deps, keep_items, set_value

PHANTOM = "data/phantom"
_MAX_SAMPLED = 256
_DECIMALS = 4
_MAX_COMPARED_ROWS = 50


def register_batch(
    name: str,
    root: Path,
    source: Source,
    *,
    weight: float = 1.0,
    split_rule: SplitRule = "official",
    has_sex: bool = False,
    only: bool = False,
    project: Project | None = None,
) -> None:
    """Add images to the project; `dvc repro` then does the rest.

    The files stay where they are. A batch never changes: the same call twice is harmless (and completes a call that was
    killed, or restores a lost manifest), the same name with other files is refused. A folder that has grown is
    registered again under a new name: files that an earlier batch of the same folder has are left out. Every batch
    names the identity key, and all the same one.

    With `only` the batch becomes the project's only one: the other items of `batches` and what the stages read of them
    are taken out, and `evaluate.batch` names it. Shards and manifests of the others stay on the disk, and so do both
    files as they were, as params.yaml.before-NAME and dvc.yaml.before-NAME.

    Args:
        name: Of the batch, as `clinic-b000`.
        root: The folder.
        source: Reads it.
        weight: Share in training; 1 shows each image once per epoch.
        split_rule: `official` keeps the dataset's own splits where it has them, `hash` splits patients by their hash.
        has_sex: Whether the shards say the patients' sex.
        only: Take every other batch out of the project.
        project: Where params.yaml and dvc.yaml are.

    Raises:
        ConfigError: the name is taken by other files or unfit, or the files of the project are not as expected.
        SourceError: the folder is not as the source expects, no image in it can be read, or, with `only`, it has too
            few test patients to measure on.
        IdKeyError: there is no identity key, or another one than the project's.
    """
    project = project or Project()
    check_batch_name(name)
    with project.editing():
        values = read_params(project.params)
        if not project.dvc.is_file():
            raise ConfigError(f"{project.dvc}: no such file; run from the project's root or pass --dvc FILE")
        grid = GridParams.from_params(values.get("grid"), f"{project.params}: grid")
        shard = ShardParams.from_params(values.get("shard"), f"{project.params}: shard")
        batches = parse_batches(values.get("batches"), f"{project.params}: batches")
        kept = {other: batch for other, batch in batches.items() if other == name or not only}
        key = _id_key(kept)

        listing = _read(source, root)
        check_records(listing.records, str(root))
        _check_official_splits(listing, split_rule)
        whole = identify(listing, source.info.name, key, split_rule=split_rule, has_sex=has_sex)
        growth = grow(whole.entries, root, read_settled(root, _others(name, kept, project)))
        if only:
            _check_test_patients(growth.entries, shard, values, root)
        delivery = _hashed(replace(whole, entries=growth.entries), root)
        manifest = "".join(format_manifest(delivery))
        dep = (MANIFESTS / f"{name}.jsonl").as_posix()
        survey = survey_images(root, [entry.record for entry in growth.entries], grid, shard)
        normalisation = survey.in_grey if _takes_grey(values) else survey.normalisation
        item: dict[str, dict[str, Any]] = {
            "source": {
                "kind": source.info.name,
                "dep": dep,
                "dep_sha256": hashlib.sha256(manifest.encode()).hexdigest(),
                "root": _portable(root, project.root),
                "channels": survey.channels,
                "shares_images_with": list(listing.shares_images_with),
                "id_key_fingerprint": key.fingerprint,
            },
            "mix": {
                "weight": weight,
                "mean": as_written(normalisation.mean),
                "std": as_written(normalisation.std),
            },
        }
        its_source = ((values.get("batches") or {}).get(name) or {}).get("source") or {}
        if "keep_sha256" in its_source:  # what a person keeps is no part of the delivery
            item["source"]["keep_sha256"] = its_source["keep_sha256"]
        BatchParams.from_params(item, f"batch {name}")

        known = (values.get("batches") or {}).get(name)
        if known is not None and known.get("source") != item["source"]:
            raise ConfigError(
                f"batch {name} exists with other files, labels or settings; a batch never changes: choose another name "
                "for the new files, as its number + 1"
            )
        earlier = project.root / dep
        if known is None and earlier.is_file() and earlier.read_text(encoding="utf-8") != manifest:
            raise ConfigError(
                f"{earlier}: a batch {name} was registered before, with other files, labels or settings; a batch never "
                "changes: choose another name, or remove that file if the batch is no longer needed"
            )
        before = {path: path.read_text(encoding="utf-8") for path in (project.params, project.dvc)}
        with_batch = (
            before[project.params] if known is not None else add_item(before[project.params], "batches", name, item)
        )
        params_text, dvc_text = with_batch, add_deps(before[project.dvc], name)
        if only:
            params_text = set_value(keep_items(with_batch, "batches", [name]), "evaluate", "batch", name)
            others = {batch for found in consumers(dvc_text).values() for batch in found} - {name}
            deps = {batch.source.dep for other, batch in batches.items() if other != name} | {PHANTOM}
            dvc_text = drop_deps(dvc_text, deps | {SHARDS + other for other in others})
        copies = []
        with clear_when_full(project.root):
            make_private_folder(project.root / MANIFESTS)
            write_private_text(project.root / dep, manifest)
            for path, text in ((project.params, params_text), (project.dvc, dvc_text)):
                place = path.with_name(f"{path.name}.before-{name}")
                is_kept = known is not None and place.exists() and before[path] == _entered(place, name, item)
                if only and text != before[path] and not is_kept:
                    copies.append(_place_of_copy(place, before[path]))
                    write_text(copies[-1], before[path])
            # A batch comes before what depends on it and goes after: a kill at any moment leaves a graph that runs.
            write_text(project.params, with_batch)
            write_text(project.dvc, dvc_text)
            write_text(project.params, params_text)
        _report(name, delivery, listing, survey, growth, known=known, takes_grey=_takes_grey(values))
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


def _entered(copy: Path, name: str, item: Mapping[str, Any]) -> str | None:
    """Return a kept copy with the batch, as a call leaves it that is killed next; None if it is no params file."""
    try:
        return add_item(copy.read_text(encoding="utf-8"), "batches", name, item)
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
    if not isinstance(evaluate, Mapping) or not isinstance(evaluate.get("decomposition"), Mapping):
        return  # `python -m ace config check` says what is wrong with it
    measured, needed = evaluate.get("split", "test"), evaluate["decomposition"].get("batch")
    found = list(split.values()).count(measured)
    if isinstance(needed, int) and found < needed:
        raise SourceError(
            f"{root}: {found} of its {len(split)} patients are in the {measured} split, and the evaluation compares "
            f"{needed} with one another (evaluate.decomposition.batch in params.yaml); give more patients, raise "
            f"shard.splits.{measured}, or choose a configuration that compares fewer"
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
    for other, batch in batches.items():
        source = batch.source
        if other == name:
            is_earlier = False
        elif isinstance(source, RegisteredSourceParams):
            yield Registered(other, project.root / source.dep, project.root / source.root, is_earlier)


def _hashed(delivery: Delivery, root: Path) -> Delivery:
    """The same with size and hash of every file."""
    records = hashed((entry.record for entry in delivery.entries), root)
    bar = progress(records, total=len(delivery.entries), description="hash", unit="image")
    entries = [replace(entry, record=record) for entry, record in zip(delivery.entries, bar, strict=True)]
    return Delivery(replace(delivery.header, num_images=len(entries)), entries)


def _portable(path: Path, project: Path) -> str:
    """Relative to the project where it lies in it (so that a clone finds it), else absolute."""
    resolved, home = path.resolve(), project.resolve()
    return resolved.relative_to(home).as_posix() if resolved.is_relative_to(home) else str(resolved)


def _report(
    name: str,
    delivery: Delivery,
    listing: Listing,
    survey: Survey,
    growth: Growth,
    *,
    known: Mapping[str, Any] | None,
    takes_grey: bool,
) -> None:
    """Say what was understood, and everything that may be wrong with it."""
    for warning in listing.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    warn_of_published_key(delivery.header.id_key_fingerprint)
    if listing.patient_grouping == "image":
        print(
            "warning: patients are unknown, every image stands alone in the split: images of one patient may be in "
            "training and in the test; the index says so (patient_grouping: image)",
            file=sys.stderr,
        )
    for other in listing.shares_images_with:
        print(f"warning: some images are also in {other}, and nothing here tells which (docs/data.md)", file=sys.stderr)
    if growth.num_kept:
        print(
            f"warning: {growth.num_kept} patients are in earlier batches and keep the splits that they have there, not "
            "those that the dataset's lists or --splits would now give them",
            file=sys.stderr,
        )
    if growth.num_known:
        print(f"{growth.num_known} images are in other batches of the folder and are left out", file=sys.stderr)
    if survey.unread:
        print(
            f"warning: looked at {survey.num_images} images, {survey.unread.total()} cannot be read and will be "
            f"quarantined:{_listed(survey.unread)}",
            file=sys.stderr,
        )
    num_patients = len({entry.record.patient for entry in delivery.entries})
    verb = "registered" if known is None else "already registered"
    written, otherwise = survey.normalisation, survey.in_grey
    if takes_grey:
        written, otherwise = otherwise, written
    mean, std = (as_written(levels) for levels in written)
    print(
        f"{verb}: {name}, {len(delivery.entries)} images of {num_patients} patients, "
        f"{survey.channels} channel(s), mean {mean}, std {std}",
        file=sys.stderr,
    )
    kept = None if known is None else (known["mix"]["mean"], known["mix"]["std"])
    if kept not in (None, (mean, std)):
        print(
            f"params.yaml keeps mean {kept[0]}, std {kept[1]} for it, measured with other parameters or written by "
            f"hand; to use what is measured now, write it to batches.{name}.mix",
            file=sys.stderr,
        )
    if survey.channels == 3:
        mean, std = (as_written(levels) for levels in otherwise)
        seen, channels = ("in grey", 3) if takes_grey else ("in colour", 1)
        print(
            f"the project's network sees these images {seen}; for pretrain.backbone.in_channels {channels}, set mean "
            f"{mean} and std {std} in batches.{name}.mix",
            file=sys.stderr,
        )


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
