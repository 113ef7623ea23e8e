"""The summary of a finished tar: what the index, the quality pass and the report need of its samples."""

from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from shards.core.records import Label, Split
from shards.decode.annotations import Loss


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedImage:
    """An image that a tar was planned with.

    Attributes:
        position: Its position among the images of the tar, from 0.
        key: Key of its sample.
        display_name: Its name in messages and in quarantine.csv, free of anything that could name a patient.
        patient: Pseudonym of its patient.
        view: A code, as PA; None where it is unknown.
    """

    position: int
    key: str
    display_name: str
    patient: str
    view: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleBytes:
    """The bytes of a sample in its tar, as samples.npy has them (`ROW_DTYPE`)."""

    start: int
    num_bytes: int
    meta_bytes: int
    image_bytes: int
    half_bytes: int
    landmarks_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tallied:
    """The part of a sample that the index adds up.

    Attributes:
        labels: Finding → label.
        foreground: Sum, sum of squares and number of the foreground's values, grey levels 0 to 255.
        num_values: Number of values of the canvas.
        lost_colour: The image is coloured and was stored in grey.
        losses: Annotations that the sample does not have, or not all of.
        areas: Structure → share of the image inside its mask, of masks that files, runs or polygons draw.
    """

    labels: dict[str, Label]
    foreground: tuple[int, int, int]
    num_values: int
    lost_colour: bool
    losses: tuple[Loss, ...]
    areas: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """An image that the tar has, as a sample."""

    image: ListedImage
    bytes: SampleBytes
    tallied: Tallied


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """An image that the tar does not have, and why."""

    image: ListedImage
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TarSummary:
    """The content of a finished tar.

    Attributes:
        name: File name of the tar.
        split: Split of all its samples.
        num_bytes: Size of the file.
        sha256: Hash of the file, in hex.
        samples: Its samples, in their order.
        quarantined: Images that it was planned with and does not have, in the order of their positions.
    """

    name: str
    split: Split
    num_bytes: int
    sha256: str
    samples: tuple[Written, ...]
    quarantined: tuple[Quarantined, ...]

    def to_json(self) -> str:
        """Write the summary as text."""
        return _SUMMARY.dump_json(self).decode()

    @staticmethod
    def parse(text: str) -> "TarSummary | None":
        """Read the text of a summary; None if an earlier version wrote it, so that its tar is built again."""
        try:
            return _SUMMARY.validate_json(text)
        except ValidationError:
            return None


_SUMMARY = TypeAdapter(TarSummary)
