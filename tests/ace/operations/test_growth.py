"""What versions and deliveries cost, and when a disk is full."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ace.__main__ import build_parser
from ace.operations.clone import SCHEDULE
from ace.operations.growth import Growth, full_at, growth_of_deliveries, growth_of_versions
from ace.operations.history import kind_of_delivery
from shards.cli import run_command
from tests.ace.operations.service import ANNA, Service

DAY = timedelta(days=1)
NOW = datetime(2026, 12, 24, tzinfo=UTC)


def test_one_point_tells_no_rate_and_neither_does_a_clock_that_was_set_back(tmp_path: Path) -> None:
    point = (NOW, {tmp_path: 100})
    assert Growth.of([]) is None
    assert Growth.of([point]) is None
    assert Growth.of([point, point]) is None
    assert Growth.of([point, (NOW - DAY, {tmp_path: 100})]) is None


def test_the_rate_is_what_came_after_the_first_by_the_days_between_first_and_last(tmp_path: Path) -> None:
    other = tmp_path / "other"
    found = Growth.of(
        [(NOW, {tmp_path: 900}), (NOW + DAY, {tmp_path: 100, other: 30}), (NOW + 4 * DAY, {tmp_path: 500})]
    )
    assert found == Growth(number=3, mean=(900 + 100 + 30 + 500) / 3, per_day={tmp_path: 600 / 4, other: 30 / 4})


def test_a_disk_is_full_when_what_is_free_is_used_up_at_the_rates_of_all_that_lies_on_it(tmp_path: Path) -> None:
    growths = [None, Growth(2, 1, {tmp_path: 30.0}), Growth(2, 1, {tmp_path: 10.0, Path("/proc"): 1e9})]
    assert full_at(tmp_path, 400, growths, NOW) == NOW + 10 * DAY
    assert full_at(tmp_path, 400, [None], NOW) is None
    assert full_at(tmp_path, 10**15, growths, NOW) is None, "later than any calendar has it"


def test_the_screen_says_what_a_version_costs_and_when_the_disk_is_full_once_there_are_two(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (service.root / "params.yaml").write_text("mix: {}\n")
    monkeypatch.chdir(service.root)
    monkeypatch.setenv("ACE_MODELS", str(service.models))
    service.train("one")
    service.registry.promote(ANNA)
    assert run_command(build_parser(), ("ops", "status")) == 0
    text = capsys.readouterr().out
    assert "what a version costs is not known yet; what a delivery costs is not known yet\n" in text
    assert "when it is full is not known yet\n" in text
    service.train("three")
    service.registry.promote(ANNA)
    sizes = [len(text) * 1001 + 5 for text in ("one", "three")]
    found = growth_of_versions(service.root, service.models, service.registry.events())
    assert found is not None
    assert found.number == 2
    assert found.mean == sum(sizes), "each lies in the cache and among the exported ones"
    assert sum(found.per_day.values()) == pytest.approx(2 * sizes[1] * 24 * 60 / 2), "two minutes lie between them"
    assert run_command(build_parser(), ("ops", "status")) == 0
    text = capsys.readouterr().out
    assert "a version 8.0 kB (mean of the last 2)" in text
    assert run_command(build_parser(), ("ops", "status", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["cost"]["version"] == {"number": 2, "mean_bytes": round(found.mean)}


def test_a_delivery_costs_its_images_and_its_shards_and_the_newest_ones_count(service: Service) -> None:
    for number in range(7):
        name, age = f"a-b{number:03}", NOW + number * DAY
        kind = kind_of_delivery("refused" if number == 6 else "accepted")
        service.registry.log.append(kind, {"batch": name}, actor=SCHEDULE, now=age)
        for folder, size in ((f"deliveries/{name}/images", 10**number), (f"data/shards/{name}", 5)):
            (service.root / folder).mkdir(parents=True)
            (service.root / folder / "file").write_bytes(bytes(size))
    found = growth_of_deliveries(service.root, service.root, service.registry.events())
    assert found is not None
    assert found.number == 5
    assert found.mean == (111110 + 25) / 5
    assert found.per_day == {service.root: (111100 + 20) / 4}


def test_a_delivery_counts_from_the_day_on_which_it_was_accepted_at_last(service: Service) -> None:
    for number, (name, verdict) in enumerate((("a-b000", "refused"), ("a-b001", "accepted"), ("a-b000", "accepted"))):
        event = kind_of_delivery(verdict)
        service.registry.log.append(event, {"batch": name}, actor=SCHEDULE, now=NOW + number * DAY)
        (service.root / f"deliveries/{name}").mkdir(parents=True, exist_ok=True)
        (service.root / f"deliveries/{name}/file").write_bytes(bytes(1000 if name == "a-b000" else 10))
    found = growth_of_deliveries(service.root, service.root, service.registry.events())
    assert found is not None
    assert found.per_day == {service.root: 1000}
