"""The commands that look at finished shard sets: verify, stats, show, gallery."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from shards.cli import add_params_options, batch_of, count
from shards.runtime.text import count_of

if TYPE_CHECKING:
    from shards.checking.verify import Problem
    from shards.reading.reader import ShardReader

_PICTURES = {".png": "PNG", ".jpg": "JPEG"}


def add_look_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `verify`, `stats`, `show` and `gallery` to the commands of `python -m shards`."""
    command = commands.add_parser("verify", help="check finished shard sets, repair damaged ones", description=_VERIFY)
    add_params_options(command)
    command.add_argument(
        "sets", nargs="+", type=_folder, metavar="SET", help="folder of a shard set, as data/shards/NAME"
    )
    command.add_argument(
        "--repair", action="store_true", help="build the damaged tars again from the raw files, and only these"
    )
    command.add_argument(
        "--num-workers", type=count, metavar="N", help="processes that repair tars; default: one per core"
    )
    command.add_argument(
        "--json", action="store_true", help="print a JSON list of problems, which is empty if all is well"
    )
    command.set_defaults(run=verify)

    command = commands.add_parser("stats", help="print what is in a shard set", description=stats.__doc__)
    command.add_argument("sets", nargs="+", metavar="SET", help="folder or URL of a shard set")
    command.add_argument("--json", action="store_true", help="print a JSON list with one object per shard set")
    command.set_defaults(run=stats)

    command = commands.add_parser("show", help="draw one sample as a picture", description=show.__doc__)
    command.add_argument("set", metavar="SET", help="folder or URL of a shard set")
    command.add_argument(
        "sample", nargs="?", default="0", metavar="KEY", help="key or row number of the sample; default: row 0"
    )
    command.add_argument(
        "--pair", type=int, default=0, metavar="N", help="number of the stored crop pair to draw; default: 0"
    )
    command.add_argument(
        "--out", type=Path, metavar="FILE", help="the picture, a .png or .jpg file; default: reports/KEY.png"
    )
    command.add_argument("--json", action="store_true", help="print the sample's description as JSON and draw nothing")
    command.set_defaults(run=show)

    command = commands.add_parser(
        "gallery", help="draw a page of all images of a shard set", description=gallery.__doc__
    )
    command.add_argument("--batch", required=True, metavar="NAME", help="name of the batch whose shard set is shown")
    command.add_argument(
        "--shards",
        type=_folder,
        default=Path("data/shards"),
        metavar="DIR",
        help="folder that holds the shard sets; default: data/shards",
    )
    command.add_argument(
        "--out", type=Path, required=True, metavar="FILE.html", help="the page, which only you can read (mode 600)"
    )
    command.add_argument(
        "--max-images",
        type=count,
        default=1000,
        metavar="N",
        help="most images to show; of a larger set, all flagged images and then a part of the others; default: 1000, "
        "about 20 MB",
    )
    command.set_defaults(run=gallery)


_VERIFY = """Compare shard sets with their indexes, byte for byte. This finds missing and truncated tars, wrong
checksums, missing, unknown and repeated keys, misplaced members and changed reports, and, between several sets,
near-duplicates in different splits. The exit code is 1 if anything is wrong. --repair builds damaged tars again; a
damaged index, table of rows or report is restored by `dvc checkout`, or by a new build."""


def _folder(text: str) -> Path:
    from shards.store.location import is_remote

    if is_remote(text):
        raise argparse.ArgumentTypeError(
            f"{text}: expected a local folder; files of a set on a server are checked against their sums when they are "
            "read"
        )
    return Path(text)


def verify(arguments: argparse.Namespace) -> int:
    """Check shard sets, repair them if asked, and print problems; returns 1 if any are left."""
    from shards.checking.verify import find_copies, format_problems, problems_json, verify_set
    from shards.format.layout import INDEX
    from shards.quality.report import QUALITY

    problems = {root: verify_set(root) for root in arguments.sets}
    if arguments.repair:
        for root, found in problems.items():
            files = {problem.file for problem in found}
            if INDEX not in files and any(file.endswith(".tar") for file in files):
                _repair(root, found, arguments)
                problems[root] = verify_set(root)
    everything = [problem for found in problems.values() for problem in found]
    readable = [root for root, found in problems.items() if not {INDEX, QUALITY} & {problem.file for problem in found}]
    everything += find_copies(readable)
    report = problems_json(everything) if arguments.json else format_problems(everything)
    print(report or f"OK: {count_of(len(arguments.sets), 'shard set')} verified")
    return int(bool(everything))


def _repair(root: Path, problems: "list[Problem]", arguments: argparse.Namespace) -> None:
    from shards.build.job import BuildJob
    from shards.checking.verify import repair_set
    from shards.reading.reader import ShardIndex
    from shards.runtime.execution import Processes

    name = ShardIndex.open(root, check_tars=False).name
    batch = batch_of(arguments, name)
    job = BuildJob(batch=name, source=batch.source, grid=batch.grid, params=batch.shard)
    repaired = repair_set(root, problems, job, Processes(arguments.num_workers))
    print(f"{root}: built again: {', '.join(repaired) or 'nothing'}", file=sys.stderr)


def stats(arguments: argparse.Namespace) -> None:
    """Print sizes, images, patients, labels, views, foreground and quarantine of shard sets."""
    from shards.checking.stats import format_statistics, statistics_of
    from shards.reading.reader import ShardIndex

    indexes = [ShardIndex.open(location).without_excluded(Path()) for location in arguments.sets]
    if arguments.json:
        print(json.dumps([statistics_of(index) for index in indexes], indent=1))
    else:
        print("\n\n".join(map(format_statistics, indexes)))


def show(arguments: argparse.Namespace) -> None:
    """Draw one sample: the canvas, its grid with a crop pair, its masks, boxes and landmarks."""
    from shards.build.contact_sheet import draw_sample
    from shards.core.errors import ConfigError
    from shards.reading.reader import ShardIndex, ShardReader
    from shards.runtime.atomic import atomic_path, clear_when_full

    reader = ShardReader(ShardIndex.open(arguments.set))
    sample = reader.read(_row(reader, arguments.sample))
    if arguments.json:
        print(json.dumps(sample.meta, indent=1))
        return
    # Below a folder that git ignores: the picture is of a patient. The key of a foreign set may be a path.
    out = arguments.out or Path("reports", Path(f"{sample.key}.png").name)
    if out.suffix.lower() not in _PICTURES:
        raise ConfigError(f"--out {out}: expected a file name that ends in {' or '.join(_PICTURES)}")
    with clear_when_full(out.parent), atomic_path(out) as temporary:
        draw_sample(sample, arguments.pair).save(temporary, _PICTURES[out.suffix.lower()])
    print(f"wrote {out}", file=sys.stderr)


def gallery(arguments: argparse.Namespace) -> None:
    """Draw a page with every image of a shard set, or with a part of a large one.

    It shows thumbnails with outlines of masks, keys, splits, labels and remarks of the quality pass, and copies side
    by side. It is one HTML file in pages of a hundred images, which opens offline and names no patients or files.
    """
    from shards.checking.gallery import render_gallery
    from shards.core.errors import ConfigError
    from shards.reading.reader import ShardIndex
    from shards.runtime.atomic import clear_when_full, write_private_text

    if arguments.out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {arguments.out}: expected a file name that ends in .html")
    _check_place(arguments.out)
    folder = arguments.shards / arguments.batch
    page = render_gallery(ShardIndex.open(folder).without_excluded(Path()), folder, arguments.max_images)
    with clear_when_full(arguments.out.parent):
        write_private_text(arguments.out, page)
    print(
        f"wrote {arguments.out} ({len(page) / 1e6:.1f} MB), which only you can read (mode 600): it may hold pictures "
        "of patients, so keep it out of git and DVC",
        file=sys.stderr,
    )


def _check_place(out: Path) -> None:
    """Refuse a path in a git work tree that git does not ignore, since the page may show patients.

    Raises:
        ConfigError: `out` is such a path.
    """
    from shards.core.errors import ConfigError

    command = ["git", "check-ignore", "--quiet", str(out.absolute())]
    folder = next(path for path in out.absolute().parents if path.is_dir())
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode
    except FileNotFoundError:  # without git nothing is committed
        return
    if found == 1:  # 128: in no work tree
        raise ConfigError(
            f"--out {out}: lies in a git work tree, and the next commit could contain pictures of patients; choose a "
            "path outside it, or below data/, which git ignores"
        )


def _row(reader: "ShardReader", name: str) -> int:
    """Find the row of a key, or take a number as the row.

    Raises:
        ConfigError: there is no such sample.
    """
    import numpy as np

    from shards.core.errors import ConfigError

    rows = reader.index.rows
    found = np.flatnonzero(rows["key"] == name.encode())
    if len(found):
        return int(found[0])
    if name.isdecimal() and int(name) < len(rows):
        return int(name)
    raise ConfigError(
        f"{name}: found no sample with this key; expected a key, some of which the set's contact sheet shows, or a row "
        f"number from 0 to {len(rows) - 1}"
    )
