"""The incumbent: the accepted model, pinned when a retraining begins, so that accepting another makes nothing stale."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ace.embed.opening import EncoderParams
from ace.encoder_lines import with_encoders
from ace.evaluation.params import parse_encoders
from ace.gate.rules import INCUMBENT
from ace.operations.clone import Clone
from ace.operations.errors import OperationsError
from ace.operations.history import Version
from ace.operations.model_files import export, first_difference
from ace.operations.registry import Registry
from ace.operations.repro import drop_torn_rwlock
from ace.operations.work_tree import DVC, PARAMS
from ace.pretrain.params import PretrainParams
from ace.pretrain.start import start_sha256
from shards.core.config import parse_yaml
from shards.delivery.mixing import Texts
from shards.delivery.project import Project
from shards.delivery.yaml_lines import enter_item, set_or_add
from shards.runtime.atomic import write_text

FOLDER = Path("registry/incumbent")
"""The incumbent's files in the service's clone; DVC has them, and git has FOLDER.dvc."""
_TRACKED = (f"{FOLDER}.dvc", f"{FOLDER.parent}/.gitignore")
_PINNED = ("start_from", "start_from_sha256")
_ENCODER = EncoderParams(model=FOLDER.as_posix(), network="teacher")


@dataclass(frozen=True)
class Incumbent:
    """The accepted version as what candidates are compared with, and may start from.

    Attributes:
        version: The accepted version.
        is_start: Whether the next training starts with its weights.
    """

    version: Version
    is_start: bool

    def is_pinned(self, clone: Clone) -> bool:
        """Tell whether the last commit has it, and its folder the bytes that were registered."""
        tracked = clone.committed(f"{FOLDER}.dvc")
        if tracked is None or _md5(tracked) != self.version.model.md5:
            return False
        committed, folder = committed_texts(clone), clone.root / FOLDER
        if not folder.is_dir() or first_difference(folder, self.version.files) is not None:
            return False
        return self.texts(committed, self._start_sha256(folder)) == committed

    def pin(self, registry: Registry) -> None:
        """Bring its verified bytes into the clone, name it among the encoders, and commit that.

        Raises:
            OperationsError: the version's bytes are not as they were registered, or dvc fails.
            ConfigError: params.yaml or dvc.yaml is not written as expected.
        """
        clone, folder = registry.clone, registry.root / FOLDER
        if not folder.is_dir() or first_difference(folder, self.version.files) is not None:
            export(registry.files(self.version), self.version.files, folder)
        _track(registry.root)
        found = _md5(folder.with_name(f"{folder.name}.dvc").read_text(encoding="utf-8"))
        if found != self.version.model.md5:
            raise OperationsError(
                f"{FOLDER}.dvc has the md5 {found}, and {self.version.name} is {self.version.model.md5}; remove "
                f"{FOLDER}.dvc and {FOLDER}, and give the command again"
            )
        project = Project(registry.root / PARAMS, registry.root / DVC)
        with project.editing():
            texts = self.texts(committed_texts(clone), self._start_sha256(folder))
            write_text(project.dvc, texts.dvc)
            write_text(project.params, texts.params)
        if not self.is_pinned(clone):
            clone.commit([*_TRACKED, PARAMS, DVC], f"{self.version.name} is the incumbent")

    def texts(self, committed: Texts, start_sha256: str | None) -> Texts:
        """Make the project's two files as they are once it is pinned.

        Args:
            committed: The files of the last commit.
            start_sha256: Digest of its weights, if training starts with them.

        Raises:
            ConfigError: they are not written as expected, or training starts with other weights already.
        """
        params, own = committed.params, parse_yaml(committed.params)
        encoders = parse_encoders(own["encoders"], PARAMS)
        if INCUMBENT not in encoders:
            params = enter_item(params, "encoders", INCUMBENT, _ENCODER.model_dump(mode="json"))
            encoders[INCUMBENT] = _ENCODER
        if self.is_start or own["pretrain"].get("start_from") == FOLDER.as_posix():
            folder = FOLDER.as_posix() if self.is_start else None
            params = set_or_add(params, "pretrain", "start_from", folder, after="seed")
            params = set_or_add(params, "pretrain", "start_from_sha256", start_sha256, after="start_from")
        PretrainParams.from_params(parse_yaml(params)["pretrain"], f"{PARAMS}: pretrain")
        return Texts(params, with_encoders(committed.dvc, encoders)[0])

    def written(self, clone: Clone) -> set[str]:
        """Name the tracked files that a killed call has changed, each as `pin` leaves it."""
        found, folder = set(_TRACKED[1:]), clone.root / FOLDER
        tracked = clone.root / _TRACKED[0]
        if not tracked.is_file() or _md5(tracked.read_text(encoding="utf-8")) == self.version.model.md5:
            found.add(_TRACKED[0])
        if folder.is_dir():
            texts = self.texts(committed_texts(clone), self._start_sha256(folder))
            for name, text in ((PARAMS, texts.params), (DVC, texts.dvc)):
                if (clone.root / name).read_text(encoding="utf-8") == text:
                    found.add(name)
        return found

    def _start_sha256(self, folder: Path) -> str | None:
        return start_sha256(folder) if self.is_start else None


def committed_texts(clone: Clone) -> Texts:
    """Read the project's two files as the last commit has them."""
    return Texts(clone.committed(PARAMS) or "", clone.committed(DVC) or "")


def without_pin(pretrain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section `pretrain` without what pinning an incumbent writes there."""
    is_pin = pretrain.get("start_from") == FOLDER.as_posix()
    return {key: value for key, value in pretrain.items() if value is not None and not (is_pin and key in _PINNED)}


def _track(root: Path) -> None:
    """Let DVC track the folder."""
    drop_torn_rwlock(root)
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "add", FOLDER.as_posix()]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise OperationsError(f"{root}: dvc add {FOLDER} failed: {(done.stderr or done.stdout).strip()}")


def _md5(text: str) -> str:
    md5: str = YAML(typ="safe", pure=True).load(text)["outs"][0]["md5"]
    return md5
