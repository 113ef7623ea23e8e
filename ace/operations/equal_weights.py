"""Show that two commits train the same weights: the smallest configuration, once in a clone of each."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from ruamel.yaml import YAML

from ace.engine.stop import StoppedError, StopRequest, stop_requests
from ace.operations.clone import git
from ace.operations.errors import OperationsError
from shards.core.config import read_params
from shards.delivery.batches import batch_path
from shards.delivery.yaml_lines import PHANTOM, SHARDS, add_deps, drop_deps, set_dep
from shards.format.exclusion import exclusion_dep
from shards.runtime.scratch import SCRATCH_VARIABLE, scratch_root
from shards.runtime.text import count_of

HEAD = "HEAD"
TEMPORARY = "equal-"
"""Beginning of the name of the temporary folder, which a killed call leaves in scratch."""
WEIGHTS, TARS = "models/ace/*.safetensors", f"{SHARDS}*/*.tar"
COMPARED = ("ace", "shards", "configs", "batches", "params.yaml", "dvc.yaml", "versions.yaml")
"""Paths of a checkout that decide the answer, and therefore have to be committed."""
_STEPS = (("-m", "ace", "config", "use", "smoke"), ("-m", "dvc", "repro", "pretrain"))
_BASE = "configs/demo.yaml"
_BATCH = "phantom-b000"
_DROPPED = ("LANG", "LANGUAGE", "PYTHONHOME", "PYTHONPATH", "PYTHONSAFEPATH")
_DROPPED_PREFIXES = ("ACE_", "DAGSTER_", "DVC_", "GIT_", "LC_")
_KEPT = ("ACE_LAUNCHER", "DVC_NO_ANALYTICS")
_WHERE = (
    "import importlib.util as util, sys; "
    "print(sys.prefix, *(util.find_spec(name).origin for name in ('ace', 'shards')), sep='\\n')"
)
_LAST_LINES = 15
_NUM_NAMED = 5
_POLL_S = 0.25


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Compares the files that two commits made of the smallest configuration.

    Attributes:
        old: Name of the one commit.
        new: Name of the other one.
        old_sums: sha256 of each file that the one made, by its path in the clone.
        new_sums: Those of the other one.
    """

    old: str
    new: str
    old_sums: Mapping[str, str]
    new_sums: Mapping[str, str]

    @property
    def different(self) -> list[str]:
        """The paths of files that are not the same, or that only one of them made."""
        names = sorted({*self.old_sums, *self.new_sums})
        return [name for name in names if self.old_sums.get(name) != self.new_sums.get(name)]

    def to_text(self) -> str:
        """Say which files are equal and which are not, and what to do."""
        different = self.different
        models = [name for name in self.new_sums if not name.startswith(SHARDS)]
        tars = [name for name in self.new_sums if name.startswith(SHARDS)]
        if not different:
            return (
                f"equal: {self.old} and {self.new} give the same {count_of(len(models), 'file')} of weights "
                f"({', '.join(models)}) and the same {count_of(len(tars), 'tar')} of shards; "
                "`dvc commit --force pretrain` records the model as it is"
            )
        shards = [name for name in different if name.startswith(SHARDS)]
        weights = [name for name in different if name not in shards]
        return "\n".join(
            (
                f"not equal: {self.old} and {self.new}",
                f"  weights: {_named(weights)}",
                f"  shards: {_named(shards)}",
                "leave `pretrain` stale: the next retraining makes a new model",
            )
        )


def compare(root: Path, old: str, new: str = HEAD, say: Callable[[str], None] = print) -> Comparison:
    """Train the smallest configuration with the code of two commits, and take the sha256 of what they made.

    Each commit is cloned into a temporary folder with a DVC cache of its own, so that nothing of the checkout is read
    but its commits, and nothing of it is changed. Both run with this interpreter and the packages that it has.

    Args:
        root: Top folder of the checkout.
        old: The one commit, as git names it.
        new: The other one; only for HEAD does it matter what is not committed.
        say: Takes a line about each step as it begins.

    Returns:
        The sums of both, also where all are equal.

    Raises:
        OperationsError: a commit is not known, something that decides the answer is not committed, or a commit cannot
            run the smallest configuration.
        StoppedError: a signal asked for the end; the folder is gone.
    """
    if new == HEAD:
        _check_committed(root)
    commits = [_commit(root, name) for name in (old, new)]
    names = [f"{name} ({commit[:10]})" for name, commit in zip((old, new), commits, strict=True)]
    with chdir(root):
        scratch = scratch_root()
    scratch.mkdir(parents=True, exist_ok=True)
    sums = []
    with stop_requests(None) as request, TemporaryDirectory(dir=scratch, prefix=TEMPORARY) as folder:
        for number, (name, commit) in enumerate(zip(names, commits, strict=True)):
            # Two folders of equally long names, one after the other: nothing but the commit differs.
            work = Path(folder).resolve() / f"{number}"
            clone = _clone(root, commit, work / "clone")
            _take_the_phantom_alone(clone, name)
            environment = _environment(clone, work)
            _check_whose_code_runs(clone, environment, name)
            for step, arguments in enumerate(_STEPS):
                say(f"{len(_STEPS) * number + step + 1}/{2 * len(_STEPS)} {name}: {_command(arguments)}")
                _run(arguments, clone, environment, request, name)
            sums.append(_sums(clone, name))
    return Comparison(old=names[0], new=names[1], old_sums=sums[0], new_sums=sums[1])


def _check_committed(root: Path) -> None:
    """Refuse what is not committed where it would decide the answer: the clones have commits alone.

    Raises:
        OperationsError: naming the files.
    """
    found = git(root, "--no-optional-locks", "status", "--porcelain", "--no-renames", "-z", "-uall", "--", *COMPARED)
    names = sorted(line[3:] for line in found.split("\0") if line)
    if names:
        raise OperationsError(
            f"{root}: not committed: {_named(names)}. Commits are compared, so expected no changes in "
            f"{', '.join(COMPARED)}; commit them, or undo them: git restore FILE"
        )


def _commit(root: Path, name: str) -> str:
    try:
        return git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}").strip()
    except OperationsError:
        raise OperationsError(
            f"{root}: git knows no commit '{name}'; expected a tag, a branch or a commit of this clone. A tag of the "
            "project comes by git fetch --no-tags UPSTREAM tag NAME"
        ) from None


def _clone(root: Path, commit: str, clone: Path) -> Path:
    """Clone a commit, with a DVC cache of its own whatever DVC's configuration on this machine says."""
    git(root, "clone", "--quiet", "--no-checkout", str(root), str(clone))
    git(clone, "checkout", "--quiet", "--detach", commit)
    (clone / ".dvc").mkdir(exist_ok=True)
    (clone / ".dvc/config.local").write_text(f"[cache]\n    dir = {clone / '.dvc/cache'}\n", encoding="utf-8")
    return clone


def _take_the_phantom_alone(clone: Path, name: str) -> None:
    """Leave out what git does not have the images of, and whatever else the project has of its own.

    `config use` keeps a project's batches, tasks and service, so the base of all configurations takes their place.

    Raises:
        OperationsError: the commit has no phantom, or is not of this project.
    """
    params, dvc, batch = clone / "params.yaml", clone / "dvc.yaml", batch_path(_BATCH, clone)
    for path in (params, dvc, clone / _BASE):
        if not path.is_file():
            raise OperationsError(f"{name}: it has no {path.relative_to(clone)}; expected a commit of this project")
    batches = read_params(params).get("batches") or {}
    if _BATCH not in batches or not batch.is_file():
        raise OperationsError(
            f"{name}: params.yaml has the batches {', '.join(batches)}; expected {_BATCH} among them, which is what "
            "git has all of. Compare two commits that have it, as tags of the project: ops equal-weights v0.1.0 "
            "--new v0.2.0"
        )
    base = read_params(clone / _BASE)
    text = add_deps(dvc.read_text(encoding="utf-8"), _BATCH)
    for other, dep in batches.items():
        if other != _BATCH:
            text = drop_deps(text, {SHARDS + other, dep} - {PHANTOM})
            text = set_dep(text, exclusion_dep(other), other, wanted=False)
    dvc.write_text(text, encoding="utf-8")
    params.write_bytes((clone / _BASE).read_bytes())
    yaml = YAML()
    values = yaml.load(batch)
    values |= {key: base[key] for key in ("grid", "shard")}  # then `config use` gives it the configuration's
    yaml.dump(values, batch)


def _environment(clone: Path, work: Path) -> dict[str, str]:
    """Make the environment of the steps: the clone's own code, and nothing of a service's, Dagster's or a locale's."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if key in _KEPT or not (key in _DROPPED or key.startswith(_DROPPED_PREFIXES))
    }
    return {
        **kept,
        "LC_ALL": "C.UTF-8",
        # Before an editable install, which is at the end of the path.
        "PYTHONPATH": str(clone),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "SHELL": "/bin/sh",  # dvc runs commands with it, which for a service's account may run none
        SCRATCH_VARIABLE: str(work / "scratch"),  # never a training that was begun elsewhere
        "DVC_SITE_CACHE_DIR": str(work / "site-cache"),
    }


def _check_whose_code_runs(clone: Path, environment: Mapping[str, str], name: str) -> None:
    """Ask the Python of a stage's command which packages it would import: with another's, all would be equal.

    Raises:
        OperationsError: they are not the clone's, or it is another Python.
    """
    # Through a shell, as dvc starts what dvc.yaml says: `python` is looked for on PATH.
    command = ["/bin/sh", "-c", 'exec python -c "$0"', _WHERE]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OperationsError(f"{name}: Python found no packages ace and shards there:\n{_last_lines(done.stderr)}")
    prefix, *files = done.stdout.splitlines()
    if prefix != sys.prefix:
        raise OperationsError(
            f"{name}: `python` is that of {prefix}; expected that of {sys.prefix}, which runs this command. Give the "
            "command with the `python` of an activated environment"
        )
    if foreign := [file for file in files if not Path(file).resolve().is_relative_to(clone)]:
        raise OperationsError(
            f"{name}: the code that would run is {', '.join(foreign)}; expected that of its clone {clone}. Take out "
            "what puts another one before PYTHONPATH, as sitecustomize"
        )


def _run(
    arguments: Sequence[str], clone: Path, environment: Mapping[str, str], request: StopRequest, name: str
) -> None:
    """Run one step to its end, or end it and all that it started once a signal asks for it.

    Raises:
        OperationsError: it failed; with its last lines.
        StoppedError: a signal asked for the end.
    """
    log = clone.with_name("log")
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=clone,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # Ctrl-C is this process's alone
        )
        try:
            while process.poll() is None:
                if request.reason is not None:
                    raise StoppedError(request.reason)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
        finally:
            _end(process)
    if process.returncode:
        said = _last_lines(log.read_text(encoding="utf-8", errors="replace"))
        raise OperationsError(
            f"{name}: {_command(arguments)} failed (exit code {process.returncode}), so nothing is known of its "
            f"weights. A commit has to run with the packages of this environment. The last lines say why:\n{said}"
        )


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a step that still runs and all below it; nothing of what they write is needed."""
    if process.poll() is not None:
        return
    below = psutil.Process(process.pid).children(recursive=True)  # torchrun's have sessions of their own
    os.killpg(process.pid, signal.SIGKILL)
    for child in below:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()
    psutil.wait_procs(below)


def _sums(clone: Path, name: str) -> dict[str, str]:
    """Take the sha256 of the weights and the tars; none of a kind would be equal to none."""
    sums = {}
    for pattern in (WEIGHTS, TARS):
        paths = sorted(clone.glob(pattern))
        if not paths:
            raise OperationsError(f"{name}: found no {pattern} after `dvc repro pretrain`; expected at least one")
        for path in paths:
            with path.open("rb") as file:
                sums[path.relative_to(clone).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def _command(arguments: Sequence[str]) -> str:
    return " ".join(("python", *arguments))


def _last_lines(text: str) -> str:
    return "\n".join(text.splitlines()[-_LAST_LINES:])


def _named(names: Sequence[str]) -> str:
    """Write the first names of a list, and how many more there are."""
    more = len(names) - _NUM_NAMED
    return ", ".join(names[:_NUM_NAMED]) + (f" and {more} more" if more > 0 else "") if names else "all equal"
