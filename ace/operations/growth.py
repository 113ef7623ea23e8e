"""Say what versions and deliveries have cost lately, and when a disk is full if that goes on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from ace.operations import history
from ace.operations.due import DELIVERIES
from ace.operations.events import Event
from shards.delivery.yaml_lines import SHARDS

NUM_LATELY = 5
"""Versions, and deliveries, that tell what one costs: the newest ones."""
_FAR = timedelta(days=100 * 365)


@dataclass(frozen=True)
class Growth:
    """Says what one kind of thing, versions or deliveries, has cost lately.

    Attributes:
        number: Versions or deliveries that were looked at.
        mean: Bytes of one of them, on all disks together.
        per_day: Folder → bytes that were added on its disk each day.
    """

    number: int
    mean: float
    per_day: Mapping[Path, float]

    @classmethod
    def of(cls, points: Sequence[tuple[datetime, Mapping[Path, int]]]) -> "Growth | None":
        """Take the mean over some points.

        Args:
            points: When each of them came, the oldest first, and its bytes by the folder that it lies in.

        Returns:
            None with fewer than two, or where the clock was set back between the first and the last.
        """
        if len(points) < 2 or points[-1][0] <= points[0][0]:
            return None
        days = (points[-1][0] - points[0][0]) / timedelta(days=1)
        folders = {folder for _, sizes in points for folder in sizes}
        # Without the first: it came before the time that is counted.
        rates = {folder: sum(sizes.get(folder, 0) for _, sizes in points[1:]) / days for folder in folders}
        return cls(len(points), sum(sum(sizes.values()) for _, sizes in points) / len(points), rates)


def growth_of_versions(root: Path, models: Path, events: Sequence[Event]) -> Growth | None:
    """Tell what a version has cost lately: its folder among the exported models, and as much in DVC's cache."""
    newest = list(history.versions(events).values())[-NUM_LATELY:]
    folders = [(version.event.time, models / version.name) for version in newest]
    sizes = [(time, size_of(folder)) for time, folder in folders if folder.is_dir()]
    return Growth.of([(time, _sums((models, number), (root, number))) for time, number in sizes])


def growth_of_deliveries(root: Path, folder: Path, events: Sequence[Event]) -> Growth | None:
    """Tell what an accepted delivery has cost lately: its images as they came, and its shards in DVC's cache.

    Args:
        root: The service's clone.
        folder: Folder of deliveries/.
        events: All events.
    """
    kind = history.kind_of_delivery("accepted")
    newest = [event for event in history.deliveries(events).values() if event.kind == kind]
    newest = sorted(newest, key=lambda event: event.sequence)[-NUM_LATELY:]
    names = [(event.time, event.facts["batch"]) for event in newest]
    return Growth.of(
        [
            (time, _sums((folder, size_of(folder / DELIVERIES / name)), (root, size_of(root / f"{SHARDS}{name}"))))
            for time, name in names
        ]
    )


def full_at(folder: Path, free: int, growths: Iterable[Growth | None], now: datetime) -> datetime | None:
    """Say when a disk is full if all goes on like lately; None if that is not known, or not to be expected.

    Args:
        folder: A folder on the disk.
        free: Bytes that are free on the disk.
        growths: What versions and deliveries have cost.
        now: What the clock shows.
    """
    device = folder.stat().st_dev
    rates = [item for growth in growths if growth is not None for item in growth.per_day.items()]
    per_day = sum(rate for of, rate in rates if of.stat().st_dev == device)
    if per_day <= 0 or free / per_day >= _FAR / timedelta(days=1):
        return None
    return now + timedelta(days=free / per_day)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; a link counts as itself."""
    return sum(file.lstat().st_size for file in (path, *path.rglob("*")) if not file.is_dir() and file.exists())


def _sums(*sizes: tuple[Path, int]) -> dict[Path, int]:
    found: dict[Path, int] = {}
    for folder, number in sizes:
        found[folder] = found.get(folder, 0) + number
    return found
