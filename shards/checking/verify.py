"""Is a shard set what its index says, byte for byte? And if not, its damaged tars built again."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from shards.build.encode import Encoder
from shards.build.plan import fingerprint, plan_batch
from shards.build.publishing import link_or_copy
from shards.build.stage import build_tars, open_manifest, root_of
from shards.build.tar_builder import TarBuilder, read_summary
from shards.build.withdraw import withdraw
from shards.errors import IndexFormatError
from shards.format.layout import HALF_SUFFIX, INDEX, LANDMARKS_SUFFIX, ROWS, SampleSpans, sha256_of
from shards.format.tar import Span
from shards.identity import SPLITS
from shards.params import GridParams, ShardParams, SourceParams
from shards.quality.report import QUALITY, near_duplicates_between
from shards.reading.reader import ShardIndex
from shards.runtime.atomic import atomic_path, clear_when_full
from shards.runtime.execution import Execution
from shards.runtime.progress import progress
from shards.runtime.scratch import scratch_root, unfinished_work

_MAX_NAMED = 5
_RESTORE = "restore it with `dvc checkout`, or build the set again"


@dataclass(frozen=True)
class Finding:
    """Something wrong.

    Attributes:
        location: The shard set.
        file: Which of its files.
        problem: In a few words; the same words for the same problem.
        detail: What was found and what was expected.
    """

    location: str
    file: str
    problem: str
    detail: str

    def to_json(self) -> dict[str, str]:
        """Plain values."""
        return asdict(self)


def verify_set(root: Path) -> list[Finding]:
    """Everything wrong with one shard set: index, rows, sums, archives, keys, places of members, and reports."""
    try:
        index = ShardIndex.open(root, is_checked=False)
        findings = list(_verify_index(root, index))
    except IndexFormatError as error:
        return [Finding(str(root), INDEX, "the index cannot be used", str(error))]
    except (KeyError, TypeError, ValueError, AttributeError):
        return [Finding(str(root), INDEX, "the index cannot be used", f"fields are missing or wrong; {_RESTORE}")]
    seen: dict[bytes, str] = {}
    bounds = _bounds(index)
    for number in progress(range(len(index.shards)), total=len(index.shards), description="verify", unit="tar"):
        rows = index.rows[bounds[number] : bounds[number + 1]]
        findings += _verify_tar(root, index.shards[number], rows, seen)
    return findings


def _bounds(index: ShardIndex) -> Int64[np.ndarray, "num_tars_and_one"]:
    """The first row of each tar, and the number of all rows."""
    return np.cumsum([0, *(shard["num_samples"] for shard in index.shards)], dtype=np.int64)


def _verify_index(root: Path, index: ShardIndex) -> Iterator[Finding]:
    """What can be seen without reading a tar."""
    listed = {shard["name"] for shard in index.shards}
    for path in sorted(root.glob("*.tar")):
        if path.name not in listed:
            detail = f"{path.stat().st_size} bytes; remove it"
            yield Finding(str(root), path.name, "a tar that the index does not list", detail)
    splits = [SPLITS.index(shard["split"]) for shard in index.shards]
    numbers = np.repeat(np.arange(len(splits)), np.diff(_bounds(index)))
    if np.any(index.rows["shard"] != numbers) or np.any(index.rows["split"] != np.array(splits)[numbers]):
        yield Finding(str(root), INDEX, "rows are of other tars or splits than the index says", _RESTORE)
    if (counted := _counted(index)) != {name: index.values["counts"][name] for name in counted}:
        detail = f"of images and patients the rows have {counted}; {_RESTORE}"
        yield Finding(str(root), INDEX, "counts are not those of the rows", detail)
    for report in index.values["reports"]:
        path = root / Path(report["name"]).name
        found = sha256_of(path) if path.is_file() else None
        if found != report["sha256"]:
            detail = f"sha256 {found}, {report['sha256']} expected; {_RESTORE}"
            yield Finding(str(root), path.name, "a report is missing or changed", detail)


def _counted(index: ShardIndex) -> dict[str, dict[str, int]]:
    rows = {split: index.rows[index.rows["split"] == number] for number, split in enumerate(SPLITS)}
    return {
        "images": {split: len(of_split) for split, of_split in rows.items()},
        "patients": {split: len(np.unique(of_split["patient"])) for split, of_split in rows.items()},
    }


def _verify_tar(root: Path, shard: dict[str, Any], rows: np.ndarray, seen: dict[bytes, str]) -> Iterator[Finding]:
    path, name = root / shard["name"], shard["name"]

    def finding(problem: str, detail: str) -> Finding:
        return Finding(str(root), name, problem, detail)

    if not path.is_file():
        yield finding("a tar is missing", f"{shard['bytes']} bytes expected")
        return
    size = path.stat().st_size
    if size != shard["bytes"]:
        problem = "a tar is truncated" if size < shard["bytes"] else "a tar is too long"
        yield finding(problem, f"{size} bytes, {shard['bytes']} expected")
    elif (found := sha256_of(path)) != shard["sha256"]:
        yield finding("a tar's sum is wrong", f"sha256 {found}, {shard['sha256']} expected")
    members, is_whole = _members(path)
    if not is_whole:
        yield finding("an archive ends before its end", f"{len(members)} whole samples, {len(rows)} expected")
    keys = [bytes(row["key"]) for row in rows]
    for key in keys:
        if key in seen:
            yield finding("a key is in two rows", f"{key.decode()} is in {seen[key]} too")
        seen[key] = name
    missing, unknown = sorted(set(keys) - set(members)), sorted(set(members) - set(keys))
    if missing:
        yield finding("keys of the index are not in the tar", _named(missing))
    if unknown:
        yield finding("keys of the tar are not in the index", _named(unknown))
    misplaced = [bytes(row["key"]) for row in rows if not _is_in_place(row, members.get(bytes(row["key"]), {}))]
    misplaced = [key for key in misplaced if key in members]
    if misplaced:
        yield finding("members are not where the index says", _named(misplaced))


def _members(path: Path) -> tuple[dict[bytes, dict[str, Span]], bool]:
    """Key → suffix → place of the members of a tar, and whether it could be read to its end.

    A key whose members are not in one run gets a suffix of its own, so that it is nowhere in place.
    """
    members: dict[bytes, dict[str, Span]] = {}
    last = b""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name, _, suffix = member.name.partition(".")
                key = name.encode(errors="surrogateescape")
                if key in members and key != last:
                    suffix = f"{suffix} (again)"
                last = key
                members.setdefault(key, {})[suffix] = Span(member.offset_data, member.size)
            is_whole = tar.offset + 2 * tarfile.BLOCKSIZE <= path.stat().st_size
    except (tarfile.TarError, OSError, EOFError):
        return members, False
    return members, is_whole


def _is_in_place(row: np.void, members: dict[str, Span]) -> bool:
    spans = SampleSpans.of(row)
    found = list(members.values())
    if not found or any(suffix.endswith("(again)") for suffix in members):
        return False
    run = Span(found[0].member_start, found[-1].member_stop - found[0].member_start)
    expected = {HALF_SUFFIX: spans.half, LANDMARKS_SUFFIX: spans.landmarks}
    others = {suffix: members[suffix] for suffix in expected if suffix in members}
    is_there = {suffix: span for suffix, span in expected.items() if span.num_bytes}
    return found[:2] == [spans.meta, spans.image] and others == is_there and run == spans.members


def _named(keys: list[bytes]) -> str:
    more = f" and {len(keys) - _MAX_NAMED} more" if len(keys) > _MAX_NAMED else ""
    return f"{len(keys)}: {', '.join(key.decode(errors='replace') for key in keys[:_MAX_NAMED])}{more}"


def find_copies(roots: list[Path]) -> list[Finding]:
    """Images of different sets and different splits that show the same picture; each set's quality report tells.

    Raises:
        IndexFormatError: a set has no sound report.
    """
    return [
        Finding(
            str(pair.first.report.parent),
            QUALITY,
            "the same picture is in two splits",
            f"{pair.first.key} ({pair.first.split}) is {pair.second.key} ({pair.second.split}) of "
            f"{pair.second.report.parent}, correlation {pair.correlation:.3f}; take one of them out of its batch",
        )
        for pair in near_duplicates_between([root / QUALITY for root in roots])
    ]


def repair_set(
    root: Path,
    findings: list[Finding],
    source: SourceParams,
    grid: GridParams,
    params: ShardParams,
    *,
    execution: Execution,
) -> list[str]:
    """Build exactly the damaged tars again and put each in its place; returns their names.

    A tar depends on nothing but the raw files and the parameters, so what is built must have the sum that the index
    names. Links of DVC's cache are replaced, never written through. Like a build it may be killed, and goes on.

    Raises:
        IndexFormatError: the index itself is damaged, or a tar comes out otherwise than the index expects.
        SourceError: the raw files are not as they were.
        NoSpaceError: the disk has too little room, or is full.
    """
    if any(finding.file == INDEX for finding in findings):
        raise IndexFormatError(f"{root}: the index or {ROWS} is damaged; {_RESTORE}")
    index = ShardIndex.open(root, is_checked=False)
    listed = {shard["name"]: number for number, shard in enumerate(index.shards)}
    damaged = sorted({finding.file for finding in findings} & set(listed))
    encoder = Encoder(index.name, source.kind, root_of(source), source.channels, grid.spec, params)
    manifest = open_manifest(source)
    with (
        clear_when_full(scratch_root()),
        unfinished_work(f"repair/{index.name}", fingerprint(manifest.sha256, encoder)) as scratch,
    ):
        # Raw files of tars that are sound may be gone.
        plan = plan_batch(manifest.placed_in(scratch), root_of(source), params, is_checked=False)
        builder = TarBuilder(plan.manifest, plan.header, encoder, scratch)
        build_tars(
            replace(plan, shards=[shard for shard in plan.shards if shard.name in damaged]), builder, execution, root
        )
        for name in damaged:
            described = index.shards[listed[name]]
            first = sum(before["num_samples"] for before in index.shards[: listed[name]])
            keys = index.keys(np.arange(first, first + described["num_samples"]))
            _replace(root / name, _rebuilt(scratch, name, frozenset(keys)), described)
    return damaged


def _rebuilt(scratch: Path, name: str, keys: frozenset[str]) -> Path:
    """The tar as it was built again, without what the quality pass had taken out of it."""
    summary = read_summary(scratch, name)
    built = [] if summary is None else [sample["row"]["key"] for sample in summary["samples"]]
    surplus = set(built) - keys
    return scratch / withdraw(summary, surplus, scratch)["path"] if summary and surplus else scratch / name


def _replace(target: Path, built: Path, shard: dict[str, object]) -> None:
    found = sha256_of(built) if built.is_file() else None
    if found != shard["sha256"]:
        raise IndexFormatError(
            f"{target}: built again it has sha256 {found}, the index expects {shard['sha256']}; parameters, raw files "
            "or libraries are others than when the set was built: build all of it again with `dvc repro --force`"
        )
    with atomic_path(target) as temporary:
        link_or_copy(built, temporary)


def format_findings(findings: list[Finding]) -> str:
    """For a terminal: a line each."""
    return "\n".join(f"{finding.location}/{finding.file}: {finding.problem}: {finding.detail}" for finding in findings)


def findings_json(findings: list[Finding]) -> str:
    """For programs: a list of objects."""
    return json.dumps([finding.to_json() for finding in findings], indent=1)
