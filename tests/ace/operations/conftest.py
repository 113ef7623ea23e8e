"""A new service for each test."""

from pathlib import Path

import pytest

from tests.ace.operations.service import Service, make_service


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return make_service(tmp_path)
