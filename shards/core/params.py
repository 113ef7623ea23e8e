"""The sections `grid`, `shard`, `batches` and `mix` of params.yaml, and the file of a batch."""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from shards.core.config import Section
from shards.core.errors import ConfigError, GridError
from shards.core.grid import GridSpec, Scale
from shards.core.normalisation import Normalisation, as_written
from shards.core.quality_params import QualityParams

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
FINGERPRINT = r"^idkey-[0-9a-f]{16}$"
SITE = r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$"
MODALITY = r"^[a-z][a-z0-9-]{0,31}$"
AGES = r"^(\d{1,3}\.\.\d{0,3}|\.\.\d{1,3})$"


class ScaleParams(Section):
    """One (k, l): a coarse token covers k × l cells."""

    k: int = Field(ge=1)
    """Cells per coarse token, rows; divides t."""
    l: int = Field(ge=1)
    """Cells per coarse token, columns; divides t."""
    weight: float = Field(ge=0)
    """Share of training steps, relative to the other scales."""


class GridParams(Section):
    """The one grid that shards, training and evaluation share (section `grid`)."""

    n: int
    """Cells per canvas side."""
    cell_px: int
    """Canvas pixels per cell side."""
    t: int
    """Tokens per crop side (even); a fine token is one cell."""
    scales: tuple[ScaleParams, ...] = Field(min_length=1)
    """The (k, l) in use."""
    min_overlap: float
    """Least shared area of two crops, as a fraction of the fine crop."""
    min_jitter_area: float
    """Least area of the jitter square, as a fraction of the canvas."""
    trim_level: int | None = None
    """Dark edges of an image, up to this grey level, are cut off before it is placed on the canvas (fundus)."""

    @property
    def spec(self) -> GridSpec:
        """The grid that these numbers describe."""
        scales = tuple(Scale(scale.k, scale.l, scale.weight) for scale in self.scales)
        return GridSpec(
            n=self.n,
            cell_px=self.cell_px,
            t=self.t,
            scales=scales,
            min_overlap=self.min_overlap,
            min_jitter_area=self.min_jitter_area,
            trim_level=self.trim_level,
        )

    @model_validator(mode="after")
    def _grid_exists(self) -> Self:
        try:
            _ = self.spec
        except GridError as error:
            raise ValueError(str(error)) from None
        return self


class SplitParams(Section):
    """Expected fraction of the patients in each split."""

    train: Fraction
    """Seen by pretraining."""
    val: Fraction
    """Share for choices made while training."""
    test: Fraction
    """Seen by the evaluation only."""

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.train + self.val + self.test
        if not math.isclose(total, 1.0, abs_tol=1e-9):
            raise ValueError(f"train {self.train} + val {self.val} + test {self.test} = {total:g}; they must sum to 1")
        return self


class ForegroundParams(Section):
    """A cell is foreground (not collimation or air) if its mean *or* its standard deviation exceeds its bound."""

    min_mean: float = Field(ge=0, le=255)
    """Grey levels (0 to 255) a cell's mean must exceed."""
    min_std: float = Field(ge=0, le=255)
    """Grey levels a cell's standard deviation must exceed."""


class ShardParams(Section):
    """The way from records to shards (section `shard`)."""

    image_format: Literal["png", "jpg"]
    """`png` is lossless."""
    jpg_quality: int = Field(ge=1, le=100)
    """Quality of `jpg`; unused by `png`."""
    num_images_per_shard: int = Field(ge=1)
    """Samples in a full tar."""
    num_bank_pairs: int = Field(ge=0)
    """Crop pairs stored with each sample, per scale."""
    seed: int = Field(ge=0)
    """Seed of the stored crop pairs."""
    splits: SplitParams
    """Patient-level split; a patient's split depends on nothing but the patient's id and the key."""
    foreground: ForegroundParams
    """Bounds by which a cell shows anatomy."""
    max_source_megapixels: float = Field(gt=0)
    """A larger image is quarantined before it is decoded."""
    max_quarantined_fraction: Fraction
    """The stage fails when more of a batch than this is quarantined: cannot be read, or is kept out by `quality`."""
    quality: QualityParams
    """Checks that keep an image out, or remark on it."""


class PhantomSourceParams(Section):
    """The built-in dataset, as `python -m shards phantom` writes it."""

    kind: Literal["phantom"]
    """Name of the source that reads the batch."""
    dep: str
    """Folder of the phantom dataset; what DVC tracks."""

    @property
    def root(self) -> str:
        """Folder of its images, which is the folder of the dataset."""
        return self.dep

    @property
    def keep_sha256(self) -> None:
        """Hash of its keep list: it has none."""
        return None

    @property
    def channels(self) -> Literal[1]:
        """Number of channels of its images: they are grey."""
        return 1

    @property
    def shares_images_with(self) -> tuple[str, ...]:
        """Datasets with some of the same images: there are none."""
        return ()


SourceKind = Literal[
    "folder",
    "dicom",
    "nih-chestxray14",
    "chexpert",
    "mimic-cxr-jpg",
    "padchest",
    "rsna-pneumonia",
    "siim-acr",
    "vindr-cxr",
    "shenzhen",
    "montgomery",
    "jsrt",
    "chestx-det",
    "covid-qu-ex",
    "open-i",
    "eyepacs",
    "drive",
    "drishti-gs",
    "refuge",
    "idrid",
]


class RegisteredSourceParams(Section):
    """A dataset or a user's own images; `python -m shards register` writes this item."""

    kind: SourceKind
    """Name of the source that read the files (`python -m shards sources`)."""
    dep: str
    """Manifest of the delivery (docs/register.md); what DVC tracks."""
    dep_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hash of the manifest: a batch never changes."""
    keep_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Hash of the list of images that a person keeps, beside the manifest (`python -m shards keep`)."""
    root: str = Field(default="", exclude=True)
    """The folder of the images. It decides nothing: not the batch's file says it, but data/manifests/NAME.root.txt."""
    channels: Literal[1, 3]
    """1: stored grey. 3: stored in colour."""
    shares_images_with: tuple[SourceKind, ...]
    """Datasets with some of the same images, which no mapping file told apart (docs/register.md)."""
    site: str = Field(default="", pattern=SITE)
    """Name of the site that gave the patients of your own images their ids (docs/register.md); empty where patients are
    unknown, in public datasets, and in batches of earlier versions, which told no sites apart."""
    modality: str | None = Field(default=None, pattern=MODALITY)
    """The kind of pictures of your own images, as `register --modality` says: `chest`, `fundus` or a word of yours."""
    id_key_fingerprint: str = Field(pattern=FINGERPRINT)
    """Fingerprint of the secret key behind patient pseudonyms and splits; the same in every batch."""


SourceParams = Annotated[PhantomSourceParams | RegisteredSourceParams, Field(discriminator="kind")]


def _as_several(levels: Any) -> Any:
    return levels if isinstance(levels, list | tuple) else (levels,)


_ONE_OR_EACH = (Field(min_length=1), BeforeValidator(_as_several), PlainSerializer(as_written))


class MixParams(Section):
    """A batch's part in training."""

    weight: float = Field(ge=0)
    """Multiplies the batch's natural share: 1 shows each image once per epoch, 0 leaves the batch out."""
    mean: Annotated[tuple[Fraction, ...], *_ONE_OR_EACH]
    """Subtracted from pixels in [0, 1]: one number for all channels, or a list with one for each."""
    std: Annotated[tuple[Positive, ...], *_ONE_OR_EACH]
    """Pixels are divided by it after; likewise."""

    def normalisation(self, channels: int, batch: str) -> Normalisation:
        """Return mean and deviation of each channel of the network's input; the message names the batch.

        Raises:
            ConfigError: there are several numbers, and not as many as channels.
        """
        grey = "set in_channels to 3, or give mean and std of the images in grey (the same `python -m shards register`"
        remedy = f"{grey} prints them)" if channels == 1 else "give mean and std for each of them"
        return Normalisation(self.mean, self.std).per_channel(channels, f"mix.{batch}", remedy)


class MeasuredParams(Section):
    """Mean and deviation of the foreground of a batch's images, of pixels in [0, 1], as `register` measured them."""

    mean: Annotated[tuple[Fraction, ...], *_ONE_OR_EACH]
    """One number for all channels, or a list with one for each."""
    std: Annotated[tuple[Positive, ...], *_ONE_OR_EACH]
    """One number for all channels, or a list with one for each."""
    grey_mean: Fraction | None = None
    """The mean of coloured images as a network of one channel sees them; None for grey images."""
    grey_std: Positive | None = None
    """Their deviation."""

    def normalisation(self, channels: int) -> Normalisation:
        """Return what a network of so many channels, 1 or 3, should subtract and divide by."""
        if channels == 1 and self.grey_mean is not None and self.grey_std is not None:
            return Normalisation((self.grey_mean,), (self.grey_std,))
        return Normalisation(self.mean, self.std)


class SelectParams(Section):
    """Hold rules that select images of a delivery.

    An image is taken if it fits every rule; without a rule, all are taken.
    """

    view: tuple[str, ...] | None = None
    """Codes as PA; `frontal` and `lateral` stand for all codes of their kind (docs/register.md)."""
    body_part: tuple[str, ...] | None = None
    """Parts of the body, as `chest`, that a DICOM header names."""
    label: tuple[str, ...] | None = None
    """Findings, of which an image shows at least one."""
    age: str | None = Field(default=None, pattern=AGES)
    """Years, FROM..TO, both included, either may be missing."""
    sex: tuple[Literal["F", "M", "O"], ...] | None = None
    """Sexes, as recorded."""
    unknown: Literal["drop"] | None = None
    """`drop` leaves out images of which a rule's value is unknown; without it they are kept."""

    @property
    def ages(self) -> tuple[float, float]:
        """The first and the last year."""
        first, _, last = (self.age or "..").partition("..")
        return float(first or 0), float(last or math.inf)

    @model_validator(mode="after")
    def _ages_are_in_order(self) -> Self:
        first, last = self.ages
        if first > last:
            raise ValueError(f"age {self.age}: expected the lower age first, found {first:g} before {last:g} years")
        return self


class SelectedParams(Section):
    """The effect of the rules when the batch was registered."""

    num_listed: int = Field(ge=1)
    """Images that the source found."""
    left_out: dict[str, int]
    """Rule → images that it left out; the first rule that an image does not fit counts."""
    unknown: dict[str, int]
    """Rule → images that were kept though nothing is known of them."""


class BatchParams(Section):
    """One immutable delivery of images, the file `batches/NAME.yaml`: everything that decides its shards.

    `python -m shards register` writes it. It holds its own copies of the sections `grid` and `shard`, so that other
    values in params.yaml build no earlier batch again.
    """

    source: SourceParams
    """Source of its images."""
    select: SelectParams | None = None
    """Rules that select images of the delivery; None, as in batches of earlier versions: all."""
    selected: SelectedParams | None = None
    """Number of images that the rules left out."""
    measured: MeasuredParams
    """Brightness of its images; decides nothing in its shards."""
    grid: GridParams
    """The grid of its shards; training asks for the one in params.yaml."""
    shard: ShardParams
    """Settings of its shards."""

    @property
    def selection(self) -> dict[str, Any] | None:
        """The rules and their effect, for the index; None where there are none."""
        if self.select is None or self.selected is None:
            return None
        return {
            "rules": self.select.model_dump(mode="json", exclude_none=True),
            **self.selected.model_dump(mode="json"),
        }


def parse_mix(values: Any, where: str) -> dict[str, MixParams]:
    """Validate the mapping `mix`, each batch's part in training; `where` opens every message.

    Raises:
        ConfigError: it is empty, not a mapping, or an item is wrong.
    """
    if not isinstance(values, Mapping) or not values:
        raise ConfigError(f"{where}: expected a mapping with at least one batch, found {values!r}")
    return {str(name): MixParams.from_params(item, f"{where}.{name}") for name, item in values.items()}


def parse_names(values: Any, where: str) -> dict[str, str]:
    """Validate the mapping `batches`: name → what its shards are made from; `where` opens every message.

    Raises:
        ConfigError: it is empty, not a mapping, a name cannot be one, or it is of an earlier version.
    """
    if not isinstance(values, Mapping) or not values:
        raise ConfigError(f"{where}: expected a mapping with at least one batch, found {values!r}")
    for name, item in values.items():
        check_batch_name(str(name))
        if isinstance(item, Mapping):
            raise ConfigError(
                f"{where}.{name}: this project is of an earlier version, which kept its batches here; "
                "`python -m ace config migrate` writes them to batches/NAME.yaml"
            )
        if not isinstance(item, str):
            raise ConfigError(f"{where}.{name}: expected the path that its shards are made from, found {item!r}")
    return {str(name): item for name, item in values.items()}


def check_batch_name(name: str) -> None:
    """Check that a batch name can be a path part, a DVC stage name and a YAML key.

    Raises:
        ConfigError: the name cannot be all three.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise ConfigError(f"batch name {name!r}: expected a letter, then letters, digits, '-' or '_', as phantom-b000")
