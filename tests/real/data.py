"""Where the real images lie that never enter the repository."""

import pytest

from tests.support.checkout import ROOT

DATA = ROOT.parent / "shared" / "data"


def needs(name: str) -> list[pytest.MarkDecorator]:
    """Marks of tests that read one of its folders; they are skipped, and say so, where it is missing."""
    is_missing = not (DATA / name).is_dir()
    return [
        pytest.mark.real,
        pytest.mark.skipif(is_missing, reason=f"REAL IMAGES NOT TESTED: {DATA / name} is missing"),
    ]
