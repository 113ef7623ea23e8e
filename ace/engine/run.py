"""Keep a run's identity, all that decides its result, and the folder that belongs to it alone."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any, Self

from filelock import FileLock, Timeout

from ace.engine.ranks import Ranks
from shards.core.errors import ConfigError
from shards.runtime.atomic import write_text
from shards.runtime.scratch import unfinished_work

RUN = "run.json"
_ROOT = Path(__file__).parents[2]
RECORDED_VERSIONS = ("torch", "timm", "numpy", "pillow", "opencv-python-headless", "simplejpeg")
DESCRIPTION = ("--always", "--abbrev=40", "--exclude=*", "--dirty")
"""Arguments of `git describe` for the whole name of a commit, without tags."""
MADE_OF = ("code", "versions")
"""Parts of the identity that `--accept-changed-code` lets change."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of carrying a run out; none of them changes what it ends with.

    Attributes:
        run_dir: Folder for checkpoints and log, kept; None for one in scratch, removed at the end.
        accepts_changed_code: Go on in `run_dir` although code or libraries changed.
        loggers: Names of more loggers than those that every run has (ace.journal.loggers).
        device: As for `choose_device`; None for that of the section.
    """

    run_dir: Path | None = None
    accepts_changed_code: bool = False
    loggers: Sequence[str] = ()
    device: str | None = None


AS_USUAL = RunOptions()
"""In scratch, with the loggers that every run has, on the section's device."""


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """Everything the finished weights depend on, but for the number of processes, which moves only their last bits.

    Attributes:
        stage: Whose run it is, as `pretrain`.
        values: Parameters, data, `code` and `versions`, nested by name.
        nearly_decisive: Dotted keys that may change while a run goes on, as on a smaller GPU, since they change the
            weights by rounding at most.
        neutral: Dotted keys that later versions added → the value with which a run of an earlier one goes on.
        section: Where its parameters stand; None for the section of the stage's name.
    """

    stage: str
    values: Mapping[str, Any]
    nearly_decisive: tuple[str, ...] = ()
    neutral: Mapping[str, Any] = field(default_factory=dict)
    section: str | None = None

    @property
    def fingerprint(self) -> str:
        """Hex digest of all that decides the weights."""
        decisive = {key: value for key, value in _flat(self.values).items() if not self.is_nearly(key)}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def former_fingerprint(self) -> str:
        """Hex digest of it all, which checkpoints of earlier versions have."""
        return hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()[:16]

    def is_nearly(self, key: str) -> bool:
        """Tell whether a dotted key is, or lies below, one of `nearly_decisive`."""
        return any(key == name or key.startswith(f"{name}.") for name in self.nearly_decisive)

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Name what differs between this run and another, as `key: found …, expected …`; found is the other's.

        A key that the other lacks, since its version had none, differs unless the value here changes nothing.
        """
        expected = _flat(self.values)
        found = {key: value for key, value in self.neutral.items() if key in expected} | _flat(other)
        return [
            f"{key}: found {found.get(key, '(none)')}, expected {expected.get(key, '(none)')}"
            for key in sorted(found.keys() | expected.keys())
            if found.get(key) != expected.get(key)
        ]

    def agreed(self, ranks: Ranks) -> Self:
        """Return the identity, once every process has the same.

        Raises:
            ConfigError: this process would train something else than the first, as on a machine with older shards.
        """
        first = ranks.from_first(lambda: self.values)

        def compare() -> None:
            if differences := self.differences(first):
                raise ConfigError(
                    "this process has other inputs than the first (found: the first's, expected: its own):\n  "
                    + "\n  ".join(differences)
                    + "\ngive all machines the same shards, parameters, code and libraries"
                )

        ranks.together(compare)
        return self


@dataclass(frozen=True)
class RunFolder:
    """A run folder holds a run's checkpoints, its rows and its dumps.

    Attributes:
        path: The folder.
        fingerprints: Of this run, and of those it goes on from.
    """

    path: Path
    fingerprints: frozenset[str]


@contextmanager
def open_run(identity: RunIdentity, run_dir: Path | None, *, accepts_changed_code: bool) -> Iterator[RunFolder]:
    """Open the folder of a run, held by this training alone.

    Args:
        identity: Everything that decides what the run ends with.
        run_dir: A folder to use and to keep. None: one below the scratch folder, named by the run's fingerprint and
            removed once the finished model is in place.
        accepts_changed_code: Go on in `run_dir` with other code or libraries than it was begun with; its `run.json`
            keeps a record of all it was trained with.

    Raises:
        ConfigError: another training holds the folder, it was begun with other parameters, data or code, or it cannot
            be written to.
    """
    if run_dir is None:
        with unfinished_work(identity.stage, identity.fingerprint) as folder:
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
        every = [replace(identity, values=run) for run in runs]
        yield RunFolder(run_dir, frozenset(f for run in every for f in (run.fingerprint, run.former_fingerprint)))
    finally:
        lock.release()


def code_sha256(parts: Iterable[str]) -> str:
    """Hex digest of modules and folders of modules, whose paths are relative to the repository."""
    modules = [path for part in parts for path in (sorted((_ROOT / part).glob("*.py")) or [_ROOT / part])]
    return hashlib.sha256(b"".join(path.read_bytes() for path in modules)).hexdigest()


def recorded_commit() -> str | None:
    """Return the commit of this code's checkout, with `-dirty` if files differ from it; None outside of one."""
    try:
        # An installed package may lie in a folder of somebody else's repository.
        for command in (("ls-files", "--error-unmatch", "ace/__init__.py"), ("describe", *DESCRIPTION)):
            done = subprocess.run(
                ["git", "-C", _ROOT, *command], capture_output=True, text=True, timeout=60, check=True
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def recorded_versions() -> dict[str, str]:
    """Python and the libraries that results depend on."""
    return {"python": python_version(), **{name: version(name) for name in RECORDED_VERSIONS}}


def _earlier_runs(identity: RunIdentity, run_dir: Path, accepts_changed_code: bool) -> list[Mapping[str, Any]]:
    path = run_dir / RUN
    if not path.exists():
        return []
    runs: list[Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["runs"]
    differences = identity.differences(runs[-1])
    accepted = tuple(f"{part}." for part in MADE_OF) + tuple(f"{part}:" for part in MADE_OF)
    nearly = [line for line in differences if identity.is_nearly(line.partition(":")[0])]
    others = [line for line in differences if line not in nearly]
    refused = [line for line in others if not (accepts_changed_code and line.startswith(accepted))]
    if refused:
        raise ConfigError(
            f"{run_dir}: begun with other inputs:\n  "
            + "\n  ".join(refused)
            + "\nrestore them, choose another --run, "
            + (f"start from the old weights ({identity.stage}.start_from), " if "start" in identity.values else "")
            + "or, where only code or versions differ, pass --accept-changed-code"
        )
    if nearly:
        print(f"{run_dir}: goes on with other values, which change the weights by rounding at most:", file=sys.stderr)
        print("\n".join(f"  {line}" for line in nearly), file=sys.stderr)
    return runs


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
