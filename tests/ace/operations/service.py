"""A service's clone with small fake models, whose bytes lie in DVC's cache as DVC writes them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ace.models.folder import CONFIG
from ace.operations.clone import Clone
from ace.operations.events import Actor
from ace.operations.registry import Registry
from ace.zoo.shipped import ZOO
from tests.support.checkout import git

ANNA = Actor("Anna <anna@example.org>")


@dataclass
class Clock:
    """A clock that shows a minute more each time it is asked, and can be set."""

    moment: datetime = field(default=datetime(2026, 11, 30, 12, tzinfo=UTC))

    def __call__(self) -> datetime:
        self.moment += timedelta(minutes=1)
        return self.moment

    def set_by(self, **step: float) -> None:
        self.moment += timedelta(**step)


@dataclass
class Service:
    root: Path
    models: Path
    clock: Clock = field(default_factory=Clock)

    @property
    def registry(self) -> Registry:
        return Registry(clone=Clone(self.root), models=self.models, clock=self.clock)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.registry.events()]

    def train(self, text: str) -> None:
        """Commit a dvc.lock with another model."""
        files = {"config.json": "{}", "README.md": f"# {text}\n", "heads/weights": text * 1000}
        entries = [{"md5": self.cache(content), "relpath": name} for name, content in sorted(files.items())]
        md5 = self.cache(json.dumps(entries), suffix=".dir")
        write_lock(self.root, {"pretrain": {"outs": [{"path": "models/ace", "md5": md5}]}})
        git(self.root, "add", "--all")
        git(self.root, "commit", "--quiet", "--allow-empty", "-m", text)

    def cache(self, content: str, suffix: str = "") -> str:
        md5 = hashlib.md5(content.encode()).hexdigest() + suffix
        path = self.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return md5

    def is_served(self, name: str, text: str) -> bool:
        folder = self.models / "accepted"
        return folder.resolve() == self.models / name and (folder / "README.md").read_text() == f"# {text}\n"


def write_lock(root: Path, stages: Mapping[str, object]) -> None:
    (root / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}))  # JSON is YAML too


def config_text(**own: object) -> str:
    """Return config.json of a training, with some values of its own."""
    shipped = json.loads((ZOO / "cxr-small" / CONFIG).read_text())
    return json.dumps({key: value for key, value in shipped.items() if key != "published"} | own)


def init_clone(root: Path) -> None:
    """Make a folder a clone that commits in Anna's name."""
    git(root, "init", "--quiet", "--initial-branch", "service")
    git(root, "config", "user.name", "Anna")
    git(root, "config", "user.email", "anna@example.org")


def make_service(folder: Path) -> Service:
    service = Service(folder / "clone", folder / "served")
    (service.root / ".dvc").mkdir(parents=True)
    init_clone(service.root)
    (service.root / ".dvc/config").touch()
    (service.root / ".gitignore").write_text("/.dvc/cache\n/.dvc/tmp\n/models\n")
    return service
