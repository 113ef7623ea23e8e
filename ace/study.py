"""Run a study in a work tree of its own, which shares DVC's cache, and record what came of it (docs/study.md)."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from math import nan
from pathlib import Path
from textwrap import fill
from typing import Any

from ace.drawing.plots import interval_chart
from ace.drawing.words import Words
from ace.evaluation.measured import MEASURED
from ace.report.comparison import compare_encoders, markdown_table
from ace.report.page import FOLDER
from ace.report.summary import encoders_of, measured_one
from shards.core.config import read_params
from shards.core.errors import ConfigError
from shards.runtime.atomic import write_text

STUDIES = Path("studies")
RUN = "params"
"""The run of a study that has no name of its own: its params are `params.yaml`."""
CODE = ("ace", "configs", "shards")
"""Folders that a study runs, which therefore have to be committed."""
TITLE_WIDTH = 18
"""Letters of a title's line above a panel of the picture, which cuts off longer ones."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
LOCK, PROPERTIES, TASKS = "dvc.lock", "properties.json", "finetune"


@dataclass(frozen=True)
class Study:
    """Name one run of a study of the checkout in the working directory.

    Attributes:
        name: Name of the study, a folder in `studies/`.
        run: Name of its params file, without the ending, as `params` or `seed1`.

    Raises:
        ConfigError: one of them is no name but a path, say.
    """

    name: str
    run: str = RUN

    def __post_init__(self) -> None:
        for name in (self.name, self.run):
            if not NAME.fullmatch(name):
                raise ConfigError(
                    f"'{name}': expected the name of a folder in {STUDIES}/, or of a file in it without its ending: "
                    "letters, digits, - and _"
                )

    @property
    def folder(self) -> Path:
        """Return the study's folder."""
        return STUDIES / self.name

    @property
    def params(self) -> Path:
        """Return the file of what differs from the configuration that its line `base` names."""
        return self.folder / f"{self.run}.yaml"

    @property
    def work(self) -> Path:
        """Return the work tree, which git ignores."""
        return self.folder / "work" / self.run

    @property
    def record(self) -> Path:
        """Return the folder of what is committed of it."""
        return self.folder if self.run == RUN else self.folder / self.run


def open_study(study: Study) -> Path:
    """Make the study's work tree, or bring it to the commit that is checked out; returns its folder.

    Whatever is trained already is taken from DVC's cache, which the work tree shares with the checkout.

    Raises:
        ConfigError: there is no such study, this is no git checkout with a commit, or code is not committed.
    """
    if not study.params.is_file():
        found = sorted(path.parent.name for path in STUDIES.glob(f"*/{study.run}.yaml"))
        raise ConfigError(f"{study.params}: not found; there are: {', '.join(found) or 'none'}")
    changed = _run(Path(), "git", "status", "--porcelain", "--", *CODE).splitlines()
    if changed:
        raise ConfigError(
            f"not committed: {', '.join(line[3:] for line in changed)}; a study runs what is committed, so that its "
            "record says which code made it: commit these first, or put them aside with `git stash -u`"
        )
    commit = _run(Path(), "git", "rev-parse", "HEAD")
    work = study.work.resolve()
    if not (work / ".git").is_file():
        work.parent.mkdir(parents=True, exist_ok=True)
        # Forced: git may still know a work tree that somebody has removed by hand.
        _run(Path(), "git", "worktree", "add", "--quiet", "--force", "--detach", str(work), commit)
    _run(work, "git", "checkout", "--quiet", "--force", "--detach", commit)
    # Tasks are no stages of a study: what is there of them is the project's own, or of another commit.
    shutil.rmtree(work / "metrics" / TASKS, ignore_errors=True)
    _run(work, "dvc", "cache", "dir", "--quiet", "--local", _run(Path(), "dvc", "cache", "dir"))
    if (study.record / LOCK).is_file():
        shutil.copyfile(study.record / LOCK, work / LOCK)
    for path in (*STUDIES.glob("*.yaml"), *study.folder.glob("*.yaml")):
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, work / path)
    return study.work


def record_study(study: Study) -> list[Path]:
    """Write what is committed of a finished study into its folder: dvc.lock, figures, the table and a chart; no image.

    Returns:
        The files written.

    Raises:
        ConfigError: the study has not run to its end.
    """
    metrics = study.work / "metrics"
    figures = metrics / PROPERTIES
    if not (study.work / LOCK).is_file() or not figures.is_file():
        raise ConfigError(f"{figures}: not found; `make study NAME={study.name}` measures the study's encoders first")
    commit = _run(study.work, "git", "rev-parse", "HEAD")
    found = json.loads(figures.read_text(encoding="utf-8"))
    written = {
        LOCK: (study.work / LOCK).read_text(encoding="utf-8"),
        PROPERTIES: figures.read_text(encoding="utf-8"),
        "trainings.json": json.dumps(_trainings(study.work), indent=1) + "\n",
        "table.md": _table(study, found, commit),
        "table.svg": _chart(found),
    }
    # Of the tasks, which only `make study-full` runs: a later `make study` leaves them, so each says its commit.
    for path in sorted((metrics / TASKS).glob("*.json")):
        task = json.loads(path.read_text(encoding="utf-8")) | {"commit": commit}
        written[f"{TASKS}/{path.name}"] = json.dumps(task, indent=2) + "\n"
    for name, text in written.items():
        write_text(study.record / name, text)
    return [study.record / name for name in written]


def _trainings(work: Path) -> dict[str, Any]:
    """Read what each training logged last, by its section in the params file.

    What a variant has left that the study no longer lists does not count.
    """
    metrics, variants = work / "metrics", read_params(work / "params.yaml").get("variants") or {}
    folders = {"pretrain": metrics / "pretrain"}
    folders |= {f"variants.{name}": metrics / "variants" / name for name in sorted(variants)}
    files = {name: folder / "metrics.json" for name, folder in folders.items()}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}


def _table(study: Study, figures: dict[str, Any], commit: str) -> str:
    measured, names = figures[MEASURED], encoders_of(figures)
    words = Words(one=measured_one(measured))
    split = "validation" if measured["split"] == "val" else "test"
    return "\n".join(
        [
            f"# {study.name}" + ("" if study.run == RUN else f", {study.run}"),
            "",
            f"Written by `make study` at commit {commit[:12]}: {measured['num_patients']} {split} {words.many} of "
            f"{measured['batch']}. Brackets are bootstrap intervals over {words.many}. Below a figure stands what "
            f"{names[0]} gains over it, over the same {words.many}: above 0 {names[0]} is better, also where less is "
            "better.",
            "",
            markdown_table(compare_encoders(figures, names, words)),
        ]
    )


def _chart(figures: dict[str, Any]) -> str:
    """Draw the headline figures as a picture that stands alone: it brings the page's colours with it."""
    names = encoders_of(figures)
    columns = compare_encoders(figures, names, Words(one="patient")).columns
    panels = {
        fill(column.title, TITLE_WIDTH): [
            tuple(figures[name][column.key][end] for end in ("value", "low", "high")) for name in names
        ]
        for column in columns
    }
    measured = {
        title: [(nan, nan, nan) if None in ends else ends for ends in intervals] for title, intervals in panels.items()
    }
    colours = (FOLDER / "style.css").read_text(encoding="utf-8").partition("}")[0] + "}"
    svg = interval_chart(measured, names)
    start = svg.index(">") + 1
    return f"{svg[:start]}<style>{colours}</style>{svg[start:]}\n"


def _run(folder: Path, *command: str) -> str:
    """Run a command, and return what it prints.

    Raises:
        ConfigError: it cannot be run, or fails.
    """
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConfigError(f"{command[0]} cannot be run: {error}") from None
    if done.returncode:
        raise ConfigError(f"`{' '.join(command)}` in {folder.resolve()} failed: {done.stderr.strip()}")
    return done.stdout.rstrip("\n")
