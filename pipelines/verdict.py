"""The gate in the UI: whether it accepts the model, by which rules, and a check that says so."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetCheckSeverity,
    AssetCheckSpec,
    MetadataValue,
    TableColumn,
    TableRecord,
    TableSchema,
)

from pipelines.lock import asset_key

ACCEPTED = "accepted"
"""Name of the check, and what a verdict says first."""
_KEYS = {ACCEPTED, "sentence", "reason", "rules"}
_COLUMNS = TableSchema(
    [
        *(TableColumn(name) for name in ("rule", "figure", "subgroup", "value", "bound")),
        TableColumn("passed", type="bool"),
    ]
)


@dataclass(frozen=True)
class VerdictCheck:
    """The check of a verdict: it fails when the candidate is rejected, and stops nothing."""

    out: str
    """The verdict, as metrics/gate.json."""

    @property
    def spec(self) -> AssetCheckSpec:
        """Its definition."""
        description = f"The candidate keeps every rule; if not, {self.out} and this check say which one it breaks"
        return AssetCheckSpec(ACCEPTED, asset=asset_key(self.out), description=description)

    @property
    def key(self) -> AssetCheckKey:
        """The key by which Dagster knows it."""
        return AssetCheckKey(asset_key(self.out), ACCEPTED)

    def evaluation(self, root: Path) -> AssetCheckEvaluation:
        """Read the verdict: a rejection is a warning, for the gate has done its work; no verdict is an error."""
        verdict = _read(root / self.out)
        return AssetCheckEvaluation(
            asset_key=asset_key(self.out),
            check_name=ACCEPTED,
            passed=bool(verdict and verdict[ACCEPTED]),
            severity=AssetCheckSeverity.WARN if verdict else AssetCheckSeverity.ERROR,
            description=verdict["sentence"] if verdict else f"{self.out} has no verdict: run its stage again",
            metadata={"reason": MetadataValue.json(verdict["reason"])} if verdict else {},
        )


def verdict_metadata(path: Path) -> dict[str, MetadataValue[Any]]:
    """Return whether the candidate is accepted, why, and all rules, broken ones first; nothing if there is no verdict.

    Args:
        path: The verdict, as metrics/gate.json.
    """
    verdict = _read(path)
    if verdict is None:
        return {}
    rules = sorted(verdict["rules"], key=lambda rule: bool(rule["passed"]))
    return {
        ACCEPTED: MetadataValue.bool(verdict[ACCEPTED]),
        "sentence": MetadataValue.text(verdict["sentence"]),
        "reason": MetadataValue.json(verdict["reason"]),
        "broken_rules": MetadataValue.int(sum(not rule["passed"] for rule in rules)),
        "rules": MetadataValue.table([_record(rule) for rule in rules], _COLUMNS),
    }


def _record(rule: Mapping[str, Any]) -> TableRecord:
    value = rule["value"]
    return TableRecord(
        {
            "rule": rule["rule"],
            "figure": rule["figure"],
            "subgroup": rule.get("subgroup", ""),
            "value": "not known" if value is None else f"{value:.5g}",
            "bound": f"{rule['must_be']} {rule['bound']:g}",
            "passed": rule["passed"],
        }
    )


def _read(path: Path) -> Mapping[str, Any] | None:
    """Read a verdict; None if the file is not there, or is another one."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found if found.keys() >= _KEYS else None
