"""`python -m ace deliveries`: what it says where it cannot work."""

import pytest

from tests.ace.commands.given import main
from tests.ace.operations.service import Service
from tests.support.checkout import git


def test_a_clone_on_another_branch_is_named_by_its_whole_path(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(service.root)
    (service.root / "params.yaml").write_text("operations: {deliveries: {name: clinic}}\n")
    git(service.root, "switch", "--quiet", "--create", "mine")
    assert main(["deliveries", "run"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {service.root} is on the branch 'mine'; ")
