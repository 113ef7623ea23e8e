"""What a training run depends on, and the folder that belongs to it alone."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

from filelock import FileLock, Timeout

from ace.training.params import PretrainParams
from ace.training.start import start_files
from shards.errors import ConfigError
from shards.params import GridParams, MixParams
from shards.reading.order import TarWindow, cache_window
from shards.reading.reader import ShardIndex
from shards.runtime.atomic import write_text
from shards.runtime.scratch import unfinished_work

RUN = "run.json"
RECORDED_VERSIONS = ("torch", "timm", "numpy", "pillow", "opencv-python-headless", "simplejpeg")
CODE = (
    "ace/data",
    "ace/embed",
    "ace/geometry",
    "ace/losses",
    "ace/models",
    "ace/training",
    "shards/canvas.py",
    "shards/config.py",
    "shards/errors.py",
    "shards/grid.py",
    "shards/identity.py",
    "shards/normalisation.py",
    "shards/params.py",
    "shards/quality_params.py",
    "shards/records.py",
    "shards/delivery/contamination.py",
    "shards/delivery/exclusion.py",
    "shards/format",
    "shards/reading",
    "shards/runtime",
    "shards/sources/base.py",
    "shards/sources/modality.py",
    "shards/store",
)
"""Modules and folders of modules that decide a training's result: those on which the stage `pretrain` depends."""
DESCRIPTION = ("--always", "--abbrev=40", "--exclude=*", "--dirty")
"""Arguments of `git describe` for the whole name of a commit, without tags."""
NOT_DECISIVE = {
    # What it stands for is in the identity itself, as `start`.
    "start_from_sha256",
    "accept_mixed_images",
    "device",
    "num_workers",
    "log_every_steps",
    "checkpoint_every_s",
    "keep_checkpoints",
    "on_nonfinite",
    "max_skipped_steps",
    "collapse",
}
"""Fields of the section that may change without changing the weights a finished run ends with."""
NEARLY_DECISIVE = ("num_micro_batches", "checkpoint_activations", "compile", "augment.where", "probe")
"""Fields of the section that may change while a run goes on, as on a smaller GPU: the weights are the same but for
rounding, and `probe` chooses the best checkpoint alone. `run.json` keeps what each part was trained with."""
NEUTRAL: Mapping[str, Any] = {
    "pretrain.whitening": None,
    "pretrain.loss_weights.removal": 0.0,
    "pretrain.augment.erase.fills.tissue": 0.0,
    "grid.trim_level": None,
}
"""Dotted keys that later versions added → the value with which a run of an earlier one, which has none, goes on."""
MADE_OF = ("code", "versions")
"""Parts of the identity that `--accept-changed-code` lets change."""


@dataclass(frozen=True)
class RunIdentity:
    """Everything the finished weights depend on, but for the number of processes, which moves only their last bits."""

    values: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        params: PretrainParams,
        grid: GridParams,
        mix: Mapping[str, MixParams],
        indexes: Mapping[str, ShardIndex],
    ) -> "RunIdentity":
        """Parameters, grid, mix and content of the shards, code and libraries."""
        root = Path(__file__).parents[2]
        start = {} if params.start_from is None else start_files(Path(params.start_from))
        modules = [path for part in CODE for path in (sorted((root / part).glob("*.py")) or [root / part])]
        return cls(
            {
                "pretrain": params.model_dump(mode="json", exclude=NOT_DECISIVE),
                "grid": grid.model_dump(mode="json"),
                "mix": {name: mix[name].model_dump(mode="json") for name in indexes},
                "start": start,
                "indexes": {name: index.fingerprint for name, index in indexes.items()},
                "window_tars": None if (window := _window(mix, indexes)) is None else window.num_tars,
                "code": hashlib.sha256(b"".join(path.read_bytes() for path in modules)).hexdigest(),
                "versions": recorded_versions(),
            }
        )

    @property
    def fingerprint(self) -> str:
        """Hex digest of all that decides the weights."""
        decisive = {key: value for key, value in _flat(self.values).items() if not _is_nearly(key)}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def former_fingerprint(self) -> str:
        """Hex digest of it all, which checkpoints of earlier versions have."""
        return hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()[:16]

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Name what differs between this run and another, as `key: found …, expected …`; found is the other's.

        A key that the other lacks, since its version had none, differs unless the value here changes nothing.
        """
        expected = _flat(self.values)
        found = {key: value for key, value in NEUTRAL.items() if key in expected} | _flat(other)
        return [
            f"{key}: found {found.get(key, '(none)')}, expected {expected.get(key, '(none)')}"
            for key in sorted(found.keys() | expected.keys())
            if found.get(key) != expected.get(key)
        ]


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its checkpoints, its rows and its dumps.

    Attributes:
        path: The folder.
        fingerprints: Of this run, and of those it goes on from.
    """

    path: Path
    fingerprints: frozenset[str]


@contextmanager
def open_run(identity: RunIdentity, run_dir: Path | None, *, accepts_changed_code: bool) -> Iterator[RunFolder]:
    """The folder of a run, held by this training alone.

    Args:
        identity: Of the run.
        run_dir: A folder to use and to keep. None: one below the scratch folder, named by the run's fingerprint and
            removed once the finished model is in place.
        accepts_changed_code: Go on in `run_dir` with other code or libraries than it was begun with; its `run.json`
            keeps a record of all it was trained with.

    Raises:
        ConfigError: another training holds the folder, it was begun with other parameters, data or code, or it cannot
            be written to.
    """
    if run_dir is None:
        with unfinished_work("pretrain", identity.fingerprint) as folder:
            yield RunFolder(folder, frozenset({identity.fingerprint}))
        return
    lock = FileLock(run_dir / "run.lock")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"{run_dir}: another training is at work here and holds {lock.lock_file}; wait for it or end it, or choose "
            "another --run"
        ) from None
    except OSError as error:
        raise ConfigError(f"--run {run_dir}: not a folder that can be written to: {error}") from None
    try:
        earlier = _earlier_runs(identity, run_dir, accepts_changed_code)
        runs = [*(run for run in earlier if run != identity.values), identity.values]
        write_text(run_dir / RUN, json.dumps({"runs": runs}, indent=2, sort_keys=True) + "\n")
        every = [RunIdentity(run) for run in runs]
        yield RunFolder(run_dir, frozenset(f for run in every for f in (run.fingerprint, run.former_fingerprint)))
    finally:
        lock.release()


def recorded_commit() -> str | None:
    """The commit of the checkout that this code runs from, with `-dirty` where files differ; None outside of one."""
    root = Path(__file__).parents[2]
    try:
        # An installed package may lie in a folder of somebody else's repository.
        for command in (("ls-files", "--error-unmatch", "ace/__init__.py"), ("describe", *DESCRIPTION)):
            done = subprocess.run(["git", "-C", root, *command], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def recorded_versions() -> dict[str, str]:
    """Python and the libraries that results depend on."""
    return {"python": python_version(), **{name: version(name) for name in RECORDED_VERSIONS}}


def _window(mix: Mapping[str, MixParams], indexes: Mapping[str, ShardIndex]) -> TarWindow | None:
    """Decides the order, and follows from the size of the cache, which other machines or a later run may have other."""
    rows = [index.select("train") for index in indexes.values()]
    return cache_window(list(indexes.values()), rows, [mix[name].weight for name in indexes])


def _earlier_runs(identity: RunIdentity, run_dir: Path, accepts_changed_code: bool) -> list[Mapping[str, Any]]:
    path = run_dir / RUN
    if not path.exists():
        return []
    runs: list[Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["runs"]
    differences = identity.differences(runs[-1])
    accepted = tuple(f"{part}." for part in MADE_OF) + tuple(f"{part}:" for part in MADE_OF)
    nearly = [line for line in differences if _is_nearly(line.partition(":")[0])]
    others = [line for line in differences if line not in nearly]
    refused = [line for line in others if not (accepts_changed_code and line.startswith(accepted))]
    if refused:
        raise ConfigError(
            f"{run_dir}: begun with other inputs:\n  "
            + "\n  ".join(refused)
            + "\nrestore them, choose another --run, start from the old weights (pretrain.start_from), or, where only "
            "code or versions differ, pass --accept-changed-code"
        )
    if nearly:
        print(f"{run_dir}: goes on with other values, which change the weights by rounding at most:", file=sys.stderr)
        print("\n".join(f"  {line}" for line in nearly), file=sys.stderr)
    return runs


def _is_nearly(key: str) -> bool:
    names = [f"pretrain.{name}" for name in NEARLY_DECISIVE]
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
