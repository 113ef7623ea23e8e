import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ace.evaluation.evidence import evaluate
from ace.evaluation.params import EvaluateParams
from tests.ace.evaluation.drawn_project import EVALUATE, write_project

LOCK = """\
schema: '2.0'
stages:
  pretrain:
    cmd: python -m ace pretrain
    outs:
    - path: models/ace
      hash: md5
      md5: 0123456789abcdef0123456789abcdef.dir
      size: 12345678
"""


@pytest.fixture(scope="session")
def evaluated_project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project in which every stage but `report` has run."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("project")
        patch.setenv("ACE_SCRATCH", str(root / "scratch"))
        write_project(root)
        params = EvaluateParams.from_params(EVALUATE, "evaluate")
        metrics, evidence = root / "metrics/properties.json", root / "data/evidence"
        evaluate(params, root / "data/shards", root / "models/ace", metrics, evidence)
        (root / "params.yaml").write_text("grid: {n: 8}  # <script>not markup</script>\n")
        (root / "dvc.lock").write_text(LOCK)
        assert json.loads(metrics.read_text())["trained"]["correspondence_px_at_1024"]["value"] > 0
        yield root
