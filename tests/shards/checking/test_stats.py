"""What `stats` says of a set in words."""

from pathlib import Path

import pytest

from shards.build.stage import build_shards
from shards.checking.stats import format_statistics
from shards.reading.reader import ShardIndex
from tests.support.datasets import Here, folder_params, grid_params, shard_params, write_csv, write_folder

NAMES = [f"{number}.png" for number in range(8)]
OWN_SPLITS = "where the dataset has splits of its own, patients are in those, and else in one by their hash"


@pytest.mark.parametrize(
    ("columns", "patients"),
    [
        (("path",), "unknown: images are split one by one"),
        (("path", "patient"), "known"),
        (("path", "patient", "split"), "known"),
    ],
)
def test_how_patients_were_split_is_said_without_a_word_that_needs_the_code(
    columns: tuple[str, ...], patients: str, tmp_path: Path
) -> None:
    write_folder(tmp_path / "own", NAMES)
    values = [{"path": name, "patient": name[0], "split": "train"} for name in NAMES]
    write_csv(tmp_path / "own.csv", columns, [tuple(row[column] for column in columns) for row in values])
    source = folder_params(tmp_path / "own", tmp_path / "own.jsonl", tmp_path / "own.csv")
    params = shard_params(splits={"train": 1.0, "val": 0.0, "test": 0.0})
    build_shards("own-b000", source, grid_params(), params, tmp_path / "set", execution=Here())
    said = format_statistics(ShardIndex.open(tmp_path / "set"))
    assert f"patients are {patients}; {OWN_SPLITS}\n" in said
