from pathlib import Path

import pytest

from ace.evaluation.params import EvaluateParams
from ace.explorer.explore import explore
from tests.ace.evaluation.drawn_project import EVALUATE, encoders_of
from tests.ace.report.conftest import evaluated_project, paths_in

__all__ = ["evaluated_project"]


@pytest.fixture(scope="session")
def explorer(evaluated_project: Path) -> Path:
    """The page of a project in which `evaluate` has run."""
    out = evaluated_project / "reports/explorer.html"
    params = EvaluateParams.from_params(EVALUATE, "evaluate")
    explore(params, encoders_of(evaluated_project), paths_in(evaluated_project), out)
    return out
