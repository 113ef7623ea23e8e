"""Tell what a run of deliveries would find to do: cheap enough to ask every half minute."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ace.operations.attempts import Attempts
from ace.operations.delivery import ATTEMPTS
from ace.operations.incoming import Arriving, arriving

INCOMING, DELIVERIES, QUARANTINE = "incoming", "deliveries", "quarantine"
_LAST_STEP = {DELIVERIES: "accept", QUARANTINE: "refuse"}


@dataclass(frozen=True)
class Due:
    """Due lists the work that a run of deliveries would find.

    Attributes:
        arriving: What lies in incoming/.
        unfinished: Folders of deliveries that were begun and whose record does not end in their last step.
    """

    arriving: list[Arriving]
    unfinished: list[Path]

    @property
    def complete(self) -> list[Arriving]:
        """Return the folders of incoming/ that may be taken."""
        return [item for item in self.arriving if item.is_complete]

    @property
    def state(self) -> str | None:
        """A hash that is another one as soon as something else is to be done; None while nothing is.

        A further attempt in vain leaves it as it is, so that it is not followed by the next one at once.
        """
        if not (self.complete or self.unfinished):
            return None
        folders = [item.path.stat() for item in self.complete]
        facts = [[(status.st_ino, status.st_ctime_ns) for status in folders], [path.name for path in self.unfinished]]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def look(folder: Path, settle_s: float, now_s: float, settling: Mapping[str, float] | None = None) -> Due:
    """Look at the folders of the deliveries; nothing is changed.

    Args:
        folder: Folder of incoming/, deliveries/ and quarantine/.
        settle_s: Seconds for which a folder without the marker must have stayed as it is.
        now_s: The time, in seconds as files have it.
        settling: As `arriving` takes it.
    """
    return Due(arriving(folder / INCOMING, settle_s, now_s, settling), unfinished(folder))


def unfinished(folder: Path) -> list[Path]:
    """List the folders of deliveries that were begun and whose record does not end in their last step.

    Args:
        folder: Folder of deliveries/ and quarantine/.
    """
    return [
        path
        for place, step in _LAST_STEP.items()
        for path in sorted((folder / place).glob("[!.]*/"))
        if not _is_finished(path, step)
    ]


def _is_finished(delivery: Path, step: str) -> bool:
    """Tell whether a delivery's record ends with this step, done; a kill just after it is found by the next run."""
    last = Attempts(delivery / ATTEMPTS).last()
    return last.get("step") == step and "finished" in last and last["error"] is None
