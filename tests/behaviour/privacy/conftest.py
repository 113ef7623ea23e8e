import json
import subprocess
import sys
from collections.abc import Iterator
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
        shell: The process of `loud` that runs the commands.
    """

    folder: Path
    shell: "subprocess.Popen[str]"

    @property
    def project(self) -> Path:
        """The folder with params.yaml; everything that commands write is below it, scratch and temporary files too."""
        return self.folder / "project"

    def run(self, *arguments: object, code: int = 0) -> str:
        """Run `python -m shards`, loudly; what it prints is also kept as an output."""
        output = self.project / f"{len(list(self.project.glob('*.txt')))}.txt"
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        print(json.dumps(([str(part) for part in arguments], str(output))), file=self.shell.stdin, flush=True)
        found = self.shell.stdout.readline()
        text = output.read_text(encoding="utf-8")
        assert found == f"{code}\n", text[-3000:]
        return text


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """A project with the repository's own params.yaml and dvc.yaml, and a key."""
    folder = tmp_path_factory.mktemp("workplace")
    project = folder / "project"
    project.mkdir()
    copy_project(project)
    # Always the same, so that no hash holds a canary by chance on one day in a thousand.
    (folder / "id.key").write_text("5eed" * 16)
    paths = {name: project / name for name in ("temporary", "scratch")}
    for path in paths.values():
        path.mkdir()
    environment = {
        "PATH": str(Path(sys.executable).parent),
        "PYTHONPATH": str(REPOSITORY),
        "HOME": str(paths["temporary"]),
        "TMPDIR": str(paths["temporary"]),
        "OMP_NUM_THREADS": "1",
        SCRATCH_VARIABLE: str(paths["scratch"]),
        KEY_FILE_VARIABLE: str(folder / "id.key"),
    }
    program = [sys.executable, "-m", "tests.behaviour.privacy.loud"]
    with subprocess.Popen(
        program, cwd=project, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as shell:
        yield Workplace(folder, shell)
        shell.communicate()
