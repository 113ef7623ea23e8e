"""The files of one tar in the scratch folder: the tar itself, and those beside it that tell how far it is."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from shards.build.summary import TarSummary
from shards.format.layout import sha256_of
from shards.quality.store import MeasureFiles
from shards.runtime.atomic import write_text

_WITHOUT_QUARANTINED = "without-quarantined"
_MAX_CRASHES = 2


@dataclass(frozen=True)
class TarFiles:
    """The files of one tar in a scratch folder. The tar is finished when its summary is there.

    Attributes:
        folder: The scratch folder.
        name: File name of the tar.
    """

    folder: Path
    name: str

    @property
    def tar(self) -> Path:
        """Path of the tar."""
        return self.folder / self.name

    @property
    def begun(self) -> Path:
        """Path of the file that has a byte for each image that has been begun."""
        return self._beside("begun")

    @property
    def measures(self) -> MeasureFiles:
        """The measures of its samples."""
        return MeasureFiles(self._beside("measures.npy"), self._beside("structures.npy"))

    @property
    def without_quarantined(self) -> "TarFiles":
        """The files of the same tar without the samples that the quality pass takes out."""
        return TarFiles(self.folder / _WITHOUT_QUARANTINED, self.name)

    def read_summary(self, *, check_tar: bool = False) -> TarSummary | None:
        """Read the summary; None if the tar is not finished.

        Args:
            check_tar: Compare the tar with the hash in its summary first; one that differs is not finished.
        """
        try:
            summary = TarSummary.parse(self._beside("json").read_text(encoding="utf-8"))
            is_whole = summary is not None and (not check_tar or sha256_of(self.tar) == summary.sha256)
        except FileNotFoundError:
            return None
        return summary if is_whole else None

    def write_summary(self, summary: TarSummary) -> None:
        """Write the summary, which says that the tar is finished."""
        write_text(self._beside("json"), summary.to_json())

    def num_begun(self) -> int:
        """Count the images that have been begun, by whatever process; 0 before the first."""
        return self.begun.stat().st_size if self.begun.is_file() else 0

    def note_crash(self) -> None:
        """Remember which image was being read when the process that built the tar ended."""
        write_text(self._beside("crashes"), json.dumps([*self._crashes(), self.num_begun() - 1]))

    def given_up(self) -> frozenset[int]:
        """Return the positions of images that have ended two processes, and are not read again."""
        return frozenset(position for position, count in Counter(self._crashes()).items() if count >= _MAX_CRASHES)

    def _crashes(self) -> list[int]:
        path = self._beside("crashes")
        return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []

    def _beside(self, suffix: str) -> Path:
        return self.folder / f"{self.name}.{suffix}"
