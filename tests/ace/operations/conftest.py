"""A new service or clinic for each test, and a bucket on a server that all tests of a file share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ace.operations.hospital import Hospital
from tests.ace.operations.service import Service, make_service
from tests.ace.operations.withdrawn import Clinic, copy_clinic, make_clinic
from tests.support.servers import s3_server


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return make_service(tmp_path)


@pytest.fixture(scope="module")
def clinic_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "clinic"
    with pytest.MonkeyPatch.context() as patch:
        make_clinic(folder, patch)
    return folder


@pytest.fixture
def clinic(clinic_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clinic:
    """Version 1 is accepted; both batches are in it."""
    return copy_clinic(clinic_template, tmp_path / "clinic", monkeypatch)


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    pytest.importorskip("s3fs")
    with s3_server() as options:
        yield options


@pytest.fixture
def hospital(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Hospital:
    """A bucket of the test's own, whose server and keys the environment names."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3["secret"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3["endpoint_url"])
    return Hospital(s3, f"b{abs(hash(request.node.name)):x}")
