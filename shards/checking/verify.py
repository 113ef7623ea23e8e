"""Compare a shard set with its index, byte for byte, and build damaged tars again."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from shards.build.job import BuildJob
from shards.build.publishing import link_or_copy
from shards.build.stage import build_tars
from shards.build.tar_files import TarFiles
from shards.build.withdraw import withdraw
from shards.core.errors import IndexFormatError
from shards.core.identity import SPLITS
from shards.format.index import TarDescription
from shards.format.layout import HALF_SUFFIX, INDEX, LANDMARKS_SUFFIX, ROWS, SampleSpans, sha256_of
from shards.format.tar import Span
from shards.quality.report import QUALITY, near_duplicates_between
from shards.reading.reader import ShardIndex
from shards.runtime.atomic import atomic_path
from shards.runtime.execution import Execution
from shards.runtime.progress import progress

_MAX_NAMED = 5
_RESTORE = "restore it with `dvc checkout`, or build the set again"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A way in which a shard set differs from its index.

    Attributes:
        location: Folder of the shard set.
        file: Name of the file that is damaged.
        kind: The problem in a few words; the same words for the same problem.
        detail: What was found and what was expected.
    """

    location: str
    file: str
    kind: str
    detail: str

    def to_json(self) -> dict[str, str]:
        """Return plain values."""
        return {"location": self.location, "file": self.file, "problem": self.kind, "detail": self.detail}


def verify_set(root: Path) -> list[Problem]:
    """Find everything wrong with one shard set: index, rows, checksums, archives, keys, members, and reports."""
    try:
        index = ShardIndex.open(root, check_tars=False)
        problems = list(_verify_index(root, index))
    except IndexFormatError as error:
        return [Problem(location=str(root), file=INDEX, kind="the index cannot be used", detail=str(error))]
    seen: dict[bytes, str] = {}
    bounds = _bounds(index)
    for number in progress(range(len(index.shards)), total=len(index.shards), description="verify", unit="tar"):
        rows = index.rows[bounds[number] : bounds[number + 1]]
        problems += _verify_tar(root, index.shards[number], rows, seen)
    return problems


def _bounds(index: ShardIndex) -> Int64[np.ndarray, "num_tars_and_one"]:
    """Return the first row of each tar, and the number of all rows."""
    return np.cumsum([0, *(tar.num_samples for tar in index.shards)], dtype=np.int64)


def _verify_index(root: Path, index: ShardIndex) -> Iterator[Problem]:
    """Find what can be seen without reading a tar."""

    def problem(file: str, kind: str, detail: str) -> Problem:
        return Problem(location=str(root), file=file, kind=kind, detail=detail)

    listed = {tar.name for tar in index.shards}
    for path in sorted(root.glob("*.tar")):
        if path.name not in listed:
            detail = f"{path.stat().st_size} bytes; remove it"
            yield problem(path.name, "a tar that the index does not list", detail)
    splits = [SPLITS.index(tar.split) for tar in index.shards]
    numbers = np.repeat(np.arange(len(splits)), np.diff(_bounds(index)))
    if np.any(index.rows["shard"] != numbers) or np.any(index.rows["split"] != np.array(splits)[numbers]):
        yield problem(INDEX, "rows are of other tars or splits than the index says", _RESTORE)
    counted, counts = _counted(index), index.description.counts
    if counted != {"images": counts.images, "patients": counts.patients}:
        detail = f"of images and patients the rows have {counted}; {_RESTORE}"
        yield problem(INDEX, "counts are not those of the rows", detail)
    for report in index.description.reports:
        path = root / report.name
        found = sha256_of(path) if path.is_file() else None
        if found != report.sha256:
            detail = f"sha256 {found}, {report.sha256} expected; {_RESTORE}"
            yield problem(path.name, "a report is missing or changed", detail)


def _counted(index: ShardIndex) -> dict[str, dict[str, int]]:
    rows = {split: index.rows[index.rows["split"] == number] for number, split in enumerate(SPLITS)}
    return {
        "images": {split: len(of_split) for split, of_split in rows.items()},
        "patients": {split: len(np.unique(of_split["patient"])) for split, of_split in rows.items()},
    }


def _verify_tar(root: Path, described: TarDescription, rows: np.ndarray, seen: dict[bytes, str]) -> Iterator[Problem]:
    path, name = root / described.name, described.name

    def problem(kind: str, detail: str) -> Problem:
        return Problem(location=str(root), file=name, kind=kind, detail=detail)

    if not path.is_file():
        yield problem("a tar is missing", f"{described.bytes} bytes expected")
        return
    size = path.stat().st_size
    if size != described.bytes:
        kind = "a tar is truncated" if size < described.bytes else "a tar is too long"
        yield problem(kind, f"{size} bytes, {described.bytes} expected")
    elif (found := sha256_of(path)) != described.sha256:
        yield problem("checksum mismatch", f"sha256 {found}, {described.sha256} expected")
    members, is_whole = _members(path)
    if not is_whole:
        yield problem("an archive ends early", f"{len(members)} whole samples, {len(rows)} expected")
    keys = [bytes(row["key"]) for row in rows]
    for key in keys:
        if key in seen:
            yield problem("a key is in two rows", f"{key.decode()} is in {seen[key]} too")
        seen[key] = name
    missing, unknown = sorted(set(keys) - set(members)), sorted(set(members) - set(keys))
    if missing:
        yield problem("keys of the index are not in the tar", _named(missing))
    if unknown:
        yield problem("keys of the tar are not in the index", _named(unknown))
    misplaced = [bytes(row["key"]) for row in rows if not _is_in_place(row, members.get(bytes(row["key"]), {}))]
    misplaced = [key for key in misplaced if key in members]
    if misplaced:
        yield problem("members are not where the index says", _named(misplaced))


def _members(path: Path) -> tuple[dict[bytes, dict[str, Span]], bool]:
    """Find the members of a tar (key → suffix → span), and tell whether it could be read to its end.

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


def find_copies(roots: list[Path]) -> list[Problem]:
    """Find images of different sets and different splits that show the same picture, by the sets' quality reports.

    Raises:
        IndexFormatError: a set has no sound report.
    """
    return [
        Problem(
            location=str(pair.first.report.parent),
            file=QUALITY,
            kind="the same picture is in two splits",
            detail=f"{pair.first.key} ({pair.first.split}) is {pair.second.key} ({pair.second.split}) of "
            f"{pair.second.report.parent}, correlation {pair.correlation:.3f}; take one of them out of its batch",
        )
        for pair in near_duplicates_between([root / QUALITY for root in roots])
    ]


def repair_set(root: Path, problems: list[Problem], job: BuildJob, execution: Execution) -> list[str]:
    """Build exactly the damaged tars again and put each in its place.

    A tar depends on nothing but the raw files and the parameters, so what is built must have the sum that the index
    names. Links of DVC's cache are replaced, never written through. Like a build it may be killed, and goes on.

    Args:
        root: Folder of the shard set.
        problems: Problems of the set, as `verify_set` found them.
        job: Builds the set's tars.
        execution: Where tars are built.

    Returns:
        The names of the tars.

    Raises:
        IndexFormatError: the index itself is damaged, or a tar comes out otherwise than the index expects.
        SourceError: the raw files are not as they were.
        NoSpaceError: the disk has too little room, or is full.
    """
    if any(problem.file == INDEX for problem in problems):
        raise IndexFormatError(f"{root}: the index or {ROWS} is damaged; {_RESTORE}")
    index = ShardIndex.open(root, check_tars=False)
    files = {problem.file for problem in problems}
    damaged = sorted((tar for tar in index.shards if tar.name in files), key=lambda tar: tar.name)
    names = [tar.name for tar in damaged]
    firsts = dict(zip((tar.name for tar in index.shards), _bounds(index), strict=False))
    with job.unfinished("repair", wait=False) as scratch:
        plan = job.plan(scratch, check_files=False)  # raw files of tars that are sound may be gone
        plan = replace(plan, shards=[shard for shard in plan.shards if shard.name in names])
        build_tars(plan, job.builder(plan, scratch), execution, root)
        for tar in damaged:
            rows = firsts[tar.name] + np.arange(tar.num_samples)
            _replace(root / tar.name, _rebuilt(TarFiles(scratch, tar.name), frozenset(index.keys(rows))), tar)
    return names


def _rebuilt(files: TarFiles, keys: frozenset[str]) -> Path:
    """Return the tar as it was built again, without what the quality pass had taken out of it."""
    summary = files.read_summary()
    surplus = set() if summary is None else {sample.image.key for sample in summary.samples} - keys
    if summary is None or not surplus:
        return files.tar
    withdraw(files, summary, dict.fromkeys(surplus, "taken out when the set was built"))
    return files.without_quarantined.tar


def _replace(target: Path, built: Path, described: TarDescription) -> None:
    found = sha256_of(built) if built.is_file() else None
    if found != described.sha256:
        raise IndexFormatError(
            f"{target}: built again it has sha256 {found}, the index expects {described.sha256}; parameters, raw files "
            "or libraries are others than when the set was built: build all of it again with `dvc repro --force`"
        )
    with atomic_path(target) as temporary:
        link_or_copy(built, temporary)


def format_problems(problems: list[Problem]) -> str:
    """Write problems for a terminal, a line each."""
    return "\n".join(f"{problem.location}/{problem.file}: {problem.kind}: {problem.detail}" for problem in problems)


def problems_json(problems: list[Problem]) -> str:
    """Write problems for programs, as a list of objects."""
    return json.dumps([problem.to_json() for problem in problems], indent=1)
