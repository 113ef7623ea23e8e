"""index.json, the description of a shard set: its type, and the one place where it is written, read and validated."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shards.core.errors import IndexFormatError
from shards.core.grid import Grid
from shards.core.records import Split
from shards.format.layout import FORMAT_VERSION, INDEX, MAX_HEADER_BYTES, ROW_DTYPE, ROWS

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
NumBytes = Annotated[int, Field(gt=0, lt=2**48)]
Texts = Annotated[tuple[str, ...], Field(strict=False)]


class _Described(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as the file has them: a field that has its default is left out."""
        return self.model_dump(mode="json", exclude_defaults=True)


class TarDescription(_Described):
    """A tar. Its name is a file name and nothing else, since it becomes part of a path."""

    num_samples: Annotated[int, Field(gt=0, lt=2**32)]
    name: Annotated[str, Field(pattern=r"^(train|val|test)-[0-9]{6,12}\.tar$")]
    split: Split
    bytes: NumBytes
    sha256: Sha256


class RowsDescription(_Described):
    """The file samples.npy."""

    name: Literal["samples.npy"]
    bytes: NumBytes
    sha256: Sha256


class ReportDescription(_Described):
    """A file of the set that is made for people."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+\.[a-z]+$")]
    bytes: NumBytes
    sha256: Sha256


class SelectionDescription(_Described):
    """The rules that chose the images of a batch from a delivery, and how many images each left out."""

    rules: dict[str, str | Texts]
    num_listed: int
    left_out: dict[str, int]
    unknown: dict[str, int]


class DatasetDescription(_Described):
    """The dataset that the images come from.

    Attributes:
        kind: Name of its source.
        patient_grouping: `image` where patients are unknown.
        shares_images_with: Datasets with some of the same images.
        split_rule: `official` keeps the dataset's own splits, `hash` splits patients by their hash.
        selection: Which images of the delivery the set has; None: all.
        modality: The kind of pictures of somebody's own images, if it was said at `register`.
    """

    kind: str
    patient_grouping: Literal["patient", "image"]
    shares_images_with: Texts
    split_rule: Literal["official", "hash"]
    selection: SelectionDescription | None = None
    modality: str | None = None


class BankDescription(_Described):
    """The crop pairs that are stored with each sample: seed of the draw, and number for each scale."""

    seed: int
    num_pairs_per_scale: int


class LostAnnotations(_Described):
    """Annotations that were lost for one reason: images, and of masks connected parts and pixels."""

    images: int
    parts: int
    pixels: int


class Counts(_Described):
    """Numbers of what the set holds.

    Attributes:
        images: Split → number of images.
        patients: Split → number of patients.
        labels: Split → label → `1`, `0`, `-1` or `unknown` → number of images.
        views: Split → view → number of images.
        foreground: Split → share of its canvases that is foreground, in [0, 1]; None without images.
        num_lost_colour: Coloured images that were stored in grey.
        lost_annotations: Annotation and reason → how many are lost.
        suspect_masks: Structure → why its masks may be wrong.
    """

    images: dict[Split, int]
    patients: dict[Split, int]
    labels: dict[Split, dict[str, dict[str, int]]]
    views: dict[Split, dict[str, int]]
    foreground: dict[Split, float | None]
    num_lost_colour: int
    lost_annotations: dict[str, LostAnnotations] = Field(default_factory=dict)
    suspect_masks: dict[str, str] = Field(default_factory=dict)


class Statistics(_Described):
    """Mean and standard deviation of the training images' foreground, of pixels in [0, 1]; None without images."""

    mean: float | None
    std: float | None


class CountedReasons(_Described):
    """A number of images, and reason → how many of them have it."""

    count: int
    reasons: dict[str, int]


class ViewMeanDescription(_Described):
    """The mean image of a view, by which its images were judged.

    Attributes:
        num_images: Images that it is the mean of.
        coherence: Median correlation of the view's images with it, in [-1, 1].
        has_bright_corners: It is brighter at the corners than in the centre.
    """

    num_images: int
    coherence: float
    has_bright_corners: bool


class QualityDescription(_Described):
    """Results of the quality pass.

    Attributes:
        suspects: Images that were remarked on and kept.
        num_groups_of_copies: Groups of images that show the same picture.
        view_means: View → its mean image.
    """

    suspects: CountedReasons
    num_groups_of_copies: int
    view_means: dict[str, ViewMeanDescription]


class IndexDescription(_Described):
    """The content of index.json.

    Attributes:
        format_version: Version of the format.
        batch: Name of the batch.
        dataset: The dataset that the images come from.
        spec: Grid that the set was built with.
        channels: 1 (grey) or 3, for every image.
        image_format: Format of the canvases.
        bank: The stored crop pairs.
        id_key_fingerprint: Fingerprint of the key behind the pseudonyms.
        shards: The tars, in the order of the rows.
        counts: Numbers of what the set holds.
        statistics: Brightness of the training images.
        quarantined: Images that were kept out.
        quality: Results of the quality pass.
        samples: The file of the rows.
        reports: The files for people.
    """

    format_version: int
    batch: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
    dataset: DatasetDescription
    spec: Grid
    channels: Literal[1, 3]
    image_format: Literal["png", "jpg"]
    bank: BankDescription
    id_key_fingerprint: str
    shards: Annotated[tuple[TarDescription, ...], Field(strict=False)]
    counts: Counts
    statistics: Statistics
    quarantined: CountedReasons
    quality: QualityDescription
    samples: RowsDescription
    reports: Annotated[tuple[ReportDescription, ...], Field(strict=False)]

    @property
    def num_samples(self) -> int:
        """Number of samples in all tars."""
        return sum(tar.num_samples for tar in self.shards)

    def to_text(self) -> str:
        """Write the content of the file."""
        return json.dumps(self.to_json(), indent=1) + "\n"

    @classmethod
    def parse(cls, content: bytes, location: str) -> Self:
        """Read the content of the file and validate it, before anything in it becomes a path or a size.

        Args:
            content: The file's bytes.
            location: Folder or URL of the shard set, which opens messages.

        Raises:
            ValueError: it is not JSON.
            RecursionError: it is nested too deeply.
            IndexFormatError: it has another format version, a field is wrong or missing, or samples.npy cannot have as
                many rows as the tars have samples.
        """
        values = json.loads(content)
        found = values.get("format_version") if isinstance(values, Mapping) else None
        if found != FORMAT_VERSION:
            raise IndexFormatError(
                f"{location}: format_version {found}, this code reads {FORMAT_VERSION}; build it again: "
                f"`dvc repro --force shard@{location.rpartition('/')[2]}`"
            )
        where = f"{location}/{INDEX}"
        try:
            index = cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise IndexFormatError(
                f"{where}: damaged, or by other hands: {field} is {first['input']!r:.100}: {first['msg']}; build the "
                "shard set again"
            ) from None
        surplus = index.samples.bytes - index.num_samples * ROW_DTYPE.itemsize
        if not 0 < surplus <= MAX_HEADER_BYTES:
            raise IndexFormatError(
                f"{where}: {ROWS} of {index.samples.bytes} bytes for {index.num_samples} samples of "
                f"{ROW_DTYPE.itemsize} bytes each; build it again"
            )
        return index
