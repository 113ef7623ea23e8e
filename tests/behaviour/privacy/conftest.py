import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from shards.core.identity import KEY_FILE_VARIABLE
from shards.runtime.scratch import SCRATCH_VARIABLE
from tests.support.checkout import copy_project

REPOSITORY = Path(__file__).parents[3]


@dataclass(frozen=True)
class Workplace:
    """A project in a folder of its own, whose commands run in processes.

    Attributes:
        folder: `project`, and beside it the raw files and the key, which are the user's own.
    """

    folder: Path

    @property
    def project(self) -> Path:
        """The folder with params.yaml; everything that commands write is below it, scratch and temporary files too."""
        return self.folder / "project"

    def run(self, *arguments: object, code: int = 0) -> str:
        """Run `python -m shards`, loudly; what it prints is also kept as an output."""
        program = [sys.executable, "-m", "tests.behaviour.privacy.loud", *map(str, arguments)]
        paths = {name: self.project / name for name in ("temporary", "scratch")}
        for path in paths.values():
            path.mkdir(exist_ok=True)
        environment = {
            "PATH": str(Path(sys.executable).parent),
            "PYTHONPATH": str(REPOSITORY),
            "HOME": str(paths["temporary"]),
            "TMPDIR": str(paths["temporary"]),
            "OMP_NUM_THREADS": "1",
            SCRATCH_VARIABLE: str(paths["scratch"]),
            KEY_FILE_VARIABLE: str(self.folder / "id.key"),
        }
        done = subprocess.run(
            program, cwd=self.project, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        text = done.stdout + done.stderr
        number = len(list(self.project.glob("*.txt")))
        (self.project / f"{number}.txt").write_text(text, encoding="utf-8")
        assert done.returncode == code, text[-3000:]
        return text


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A project with the repository's own params.yaml and dvc.yaml, and a key."""
    place = Workplace(tmp_path_factory.mktemp("workplace"))
    place.project.mkdir()
    copy_project(place.project)
    # Always the same, so that no hash holds a canary by chance on one day in a thousand.
    (place.folder / "id.key").write_text("5eed" * 16)
    return place
