"""Reading DICOM data sets: only the listed elements, within bounds, and without a word about their values."""

import io
import logging
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, BinaryIO

from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from shards.core.errors import UserError
from shards.core.records import Sex
from shards.decode.reasons import DAMAGED, NO_PIXEL_DATA, NOT_DICOM, TRUNCATED, TooLargeError, UnreadableImageError
from shards.decode.signature import DICOM_MAGIC, PREAMBLE_BYTES, is_dicom

# pydicom's log lines quote values, as its warnings do; they must not reach the handlers of the root logger.
logging.getLogger("pydicom").propagate = False

_HEAD_BYTES = 16384
_META_GROUP = b"\x02\x00"
_SYNTAX_ELEMENT = b"\x10\x00"
_LONG_FORMS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_PIXEL_TAGS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")
_DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"
"""Tag that ends a sequence, and compressed pixels."""
_MAX_HEADER_BYTES = 64 * 2**20

_HEADER_TAGS = (
    "SpecificCharacterSet",
    "PatientID",
    "IssuerOfPatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "SOPClassUID",
    "Modality",
    "BodyPartExamined",
    "ImageLaterality",
    "Laterality",
    "ViewPosition",
    "ViewCodeSequence",
    "PatientSex",
    "PatientAge",
    "PatientBirthDate",
    "StudyDate",
    "PresentationIntentType",
    "ImageType",
    "ConversionType",
    "BurnedInAnnotation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "PixelSpacing",
    "PixelSpacingCalibrationType",
)
_SEXES: dict[str, Sex] = {"F": "F", "M": "M", "O": "O"}
_AGE = re.compile(r"0*(\d{1,3})([DWMY]?)")
_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")
_DAYS_PER_UNIT = {"D": 1.0, "W": 7.0, "M": 365.25 / 12}
_MAX_AGE_YEARS = 120


Keyword = str | tuple[int, int]
"""An element by its keyword; by its group and number where it is one of many of a kind."""


@dataclass(frozen=True, kw_only=True)
class DicomHeader:
    """The header of a DICOM file, as far as sorting a tree of files needs it; ids are raw and must not be written.

    Attributes:
        patient_id: Patient ID, unique within its issuer.
        issuer: Issuer of Patient ID.
        study_uid: Study Instance UID.
        sop_uid: SOP Instance UID, unique to the image.
        sop_class: SOP Class UID, the kind of object.
        modality: Modality, as CR, DX, SR.
        body_part: Body Part Examined, as CHEST, BREAST.
        laterality: Side of the image, or else of its series: L, R, U (not of one side), B (both).
        view_position: View, as PA, AP, LL.
        view_code: Code of the view, of SNOMED, as 399162004 or R-10242.
        sex: M, F or O.
        age_years: Completed years, of Patient's Age or else from birth to study; None if neither makes sense.
        presentation_intent: FOR PRESENTATION or FOR PROCESSING.
        image_type: Values of Image Type, as (DERIVED, PRIMARY).
        conversion_type: Conversion of secondary captures, as WSD or SI.
        burned_in: Burned In Annotation as true or false; None if the file does not say, which is not false.
        num_frames: 1 if the file does not say.
        rows: Height of the image, in pixels.
        cols: Width of the image, in pixels.
        has_pixels: Pixel data begin where the header ends.
        spacing: (row, col) millimetres at the detector, by `spacing_of`.
    """

    patient_id: str | None
    issuer: str | None
    study_uid: str | None
    sop_uid: str | None
    sop_class: str | None
    modality: str | None
    body_part: str | None
    laterality: str | None
    view_position: str | None
    view_code: str | None
    sex: Sex | None
    age_years: int | None
    presentation_intent: str | None
    image_type: tuple[str, ...]
    conversion_type: str | None
    burned_in: bool | None
    num_frames: int
    rows: int | None
    cols: int | None
    has_pixels: bool
    spacing: tuple[float, float] | None


def read_header(path: Path) -> DicomHeader:
    """Read the header of a DICOM file up to its pixels; nothing but the listed elements is parsed.

    Raises:
        OSError: the file cannot be opened.
        UnreadableImageError: it is no DICOM file, or its header is damaged; the reason names no file.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if not is_dicom(head):
            raise UnreadableImageError(NOT_DICOM)
        source: BinaryIO = file
        if _is_deflated(head):
            source = io.BytesIO(_inflated(head + file.read(), _MAX_HEADER_BYTES, must_end=False))
        source.seek(0)
        with reporting_nothing():
            dataset = dcmread(source, force=True, stop_before_pixels=True, specific_tags=list(_HEADER_TAGS))
            return _header(dataset, has_pixels=source.read(4) in _PIXEL_TAGS)


def parse(data: bytes, keywords: Sequence[Keyword], *, max_bytes: float) -> FileDataset:
    """Parse the listed elements of a DICOM file's bytes; the others are passed over unread.

    Args:
        data: The whole file, of which `is_dicom` holds.
        keywords: Keywords of the elements to parse.
        max_bytes: A deflated file is inflated no further.

    Raises:
        UnreadableImageError: it inflates to more, its deflated stream ends early, or it ends before its pixels.
    """
    if _is_deflated(data):
        data = _inflated(data, int(max_bytes), must_end=True)
    tags = [Tag(keyword) for keyword in keywords]
    dataset = _read(data, tags)
    # Of a file that ends within a value of undefined length pydicom keeps nothing; its pixels may be whole.
    return dataset if len(dataset) else _read(data + _DELIMITER, tags)


@contextmanager
def reporting_nothing() -> Iterator[None]:
    """Turn whatever pydicom and its decoders raise or warn of into a fixed reason: their texts may hold values."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UnreadableImageError, UserError):
        raise
    except Exception:
        raise UnreadableImageError(DAMAGED) from None


def text_of(dataset: Dataset, keyword: str) -> str | None:
    """Return an element's text without the blanks around it; None if it is absent or empty."""
    return "\\".join(texts_of(dataset, keyword)) or None


def texts_of(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """Return the texts of an element that holds several; one text gives one."""
    value = _value(dataset, keyword)
    return tuple(str(item).strip(" \0") for item in (value if isinstance(value, MultiValue) else (value or "",)))


def numbers_of(dataset: Dataset, keyword: Keyword) -> tuple[float, ...]:
    """Return an element's numbers; none if it is absent, empty or not of numbers."""
    value = _value(dataset, keyword)
    try:
        return tuple(float(item) for item in (value if isinstance(value, MultiValue | list | tuple) else (value,)))
    except (TypeError, ValueError, OverflowError):
        return ()


def items_of(dataset: Dataset, keyword: Keyword) -> tuple[float | None, ...]:
    """Return an element's values, None for each that is empty or no number; without values if the element is absent."""
    value = _value(dataset, keyword)
    if value is None or value == "":
        return ()
    return tuple(_number(item) for item in (value if isinstance(value, MultiValue | list | tuple) else (value,)))


def number_of(dataset: Dataset, keyword: Keyword) -> float | None:
    """Return the first of an element's values; None if that is no number."""
    return next(iter(items_of(dataset, keyword)), None)


def count_of(dataset: Dataset, keyword: str) -> int | None:
    """Return the first of an element's numbers if it is a whole one above 0."""
    number = number_of(dataset, keyword)
    return int(number) if number is not None and number > 0 and number.is_integer() else None


def spacing_of(dataset: Dataset) -> tuple[float, float] | None:
    """Return the (row, col) millimetres of a pixel at the detector or on the film.

    Imager Pixel Spacing or Nominal Scanned Pixel Spacing; else Pixel Spacing, unless the file says that it was
    calibrated to a plane in the patient (DICOM PS3.3 10.7.1.3).
    """
    keywords = ["ImagerPixelSpacing", "NominalScannedPixelSpacing"]
    if text_of(dataset, "PixelSpacingCalibrationType") is None:
        keywords.append("PixelSpacing")
    for keyword in keywords:
        sides = numbers_of(dataset, keyword)
        if len(sides) == 2 and all(0 < side < float("inf") for side in sides):
            return sides[0], sides[1]
    return None


def is_burned_in(dataset: Dataset) -> bool | None:
    """Read Burned In Annotation; None if the file does not say."""
    return {"YES": True, "NO": False}.get(text_of(dataset, "BurnedInAnnotation") or "")


def parse_sex(value: str) -> Sex | None:
    """Parse a sex: F, M or O, and None for anything else."""
    return _SEXES.get(value.upper())


def parse_age(value: str) -> int | None:
    """Parse an age to completed years; None for more than a human life.

    It is written as `045Y`, `018M` or, against the standard, as a bare number.
    """
    stated = _AGE.fullmatch(value)
    if stated is None:
        return None
    number, unit = int(stated[1]), stated[2]
    years = number if unit in ("Y", "") else int(number * _DAYS_PER_UNIT[unit] / 365.25)
    return years if years <= _MAX_AGE_YEARS else None


def _read(data: bytes, tags: list[BaseTag]) -> FileDataset:
    file = io.BytesIO(data)
    dataset = dcmread(file, force=True, specific_tags=list(tags))
    # pydicom passes over an element that it was not asked for, even where the file ends within it.
    if file.tell() > len(data) and "PixelData" not in dataset:
        raise UnreadableImageError(NO_PIXEL_DATA)
    return dataset


def _header(dataset: Dataset, *, has_pixels: bool) -> DicomHeader:
    return DicomHeader(
        patient_id=text_of(dataset, "PatientID"),
        issuer=text_of(dataset, "IssuerOfPatientID"),
        study_uid=text_of(dataset, "StudyInstanceUID"),
        sop_uid=text_of(dataset, "SOPInstanceUID"),
        sop_class=text_of(dataset, "SOPClassUID"),
        modality=text_of(dataset, "Modality"),
        body_part=text_of(dataset, "BodyPartExamined"),
        laterality=text_of(dataset, "ImageLaterality") or text_of(dataset, "Laterality"),
        view_position=text_of(dataset, "ViewPosition"),
        view_code=_code_of(dataset, "ViewCodeSequence"),
        sex=parse_sex(text_of(dataset, "PatientSex") or ""),
        age_years=_age_years(dataset),
        presentation_intent=text_of(dataset, "PresentationIntentType"),
        image_type=tuple(text for text in texts_of(dataset, "ImageType") if text),
        conversion_type=text_of(dataset, "ConversionType"),
        burned_in=is_burned_in(dataset),
        num_frames=count_of(dataset, "NumberOfFrames") or 1,
        rows=count_of(dataset, "Rows"),
        cols=count_of(dataset, "Columns"),
        has_pixels=has_pixels,
        spacing=spacing_of(dataset),
    )


def _code_of(dataset: Dataset, keyword: str) -> str | None:
    """Return the code of a sequence's first item."""
    items = _value(dataset, keyword)
    return text_of(items[0], "CodeValue") if isinstance(items, Sequence) and items else None


def _age_years(dataset: Dataset) -> int | None:
    stated = parse_age(text_of(dataset, "PatientAge") or "")
    if stated is not None:
        return stated
    born, studied = (_date(text_of(dataset, keyword)) for keyword in ("PatientBirthDate", "StudyDate"))
    if born is None or studied is None:
        return None
    years = studied.year - born.year - ((studied.month, studied.day) < (born.month, born.day))
    return years if 0 <= years <= _MAX_AGE_YEARS else None


def _date(text: str | None) -> date | None:
    parts = _DATE.fullmatch(text or "")
    try:
        return date(*(int(part) for part in parts.groups())) if parts is not None else None
    except ValueError:
        return None


def _value(dataset: Dataset, keyword: Keyword) -> Any:
    """Return an element's value; None if it is absent, or nothing that its type allows."""
    try:
        if isinstance(keyword, str):
            return dataset.get(keyword)
        return dataset[keyword].value if keyword in dataset else None
    except (TypeError, ValueError, OverflowError, ArithmeticError):
        return None


def _number(item: Any) -> float | None:
    try:
        return float(item)
    except (TypeError, ValueError, OverflowError):
        return None


@dataclass(frozen=True)
class _Meta:
    """The end of the file meta information, and the position of the transfer syntax in it."""

    end: int
    syntax: slice


def _meta(data: bytes) -> _Meta:
    """Walk the file meta information (PS3.10 7.1), which is in explicit little endian whatever follows."""
    offset = PREAMBLE_BYTES + 4 if data[PREAMBLE_BYTES : PREAMBLE_BYTES + 4] == DICOM_MAGIC else 0
    syntax = slice(0, 0)
    while data[offset : offset + 2] == _META_GROUP:
        is_long = data[offset + 4 : offset + 6] in _LONG_FORMS
        start = offset + (12 if is_long else 8)
        end = start + int.from_bytes(data[start - (4 if is_long else 2) : start], "little")
        if data[offset + 2 : offset + 4] == _SYNTAX_ELEMENT:
            syntax = slice(start, end)
        offset = end
    return _Meta(offset, syntax)


def _is_deflated(data: bytes) -> bool:
    return data[_meta(data).syntax].rstrip(b"\0 ") == DeflatedExplicitVRLittleEndian.encode()


def _inflated(data: bytes, max_bytes: int, *, must_end: bool) -> bytes:
    """Inflate a deflated file to an ordinary one; pydicom itself would inflate without a bound."""
    meta = _meta(data)
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = stream.decompress(memoryview(data)[meta.end :], max_bytes)
    except zlib.error:
        raise UnreadableImageError(DAMAGED) from None
    if must_end and not stream.eof:
        raise TooLargeError if stream.unconsumed_tail else UnreadableImageError(TRUNCATED)
    length = meta.syntax.stop - meta.syntax.start
    syntax = ExplicitVRLittleEndian.encode().ljust(length, b"\0")
    return b"".join([data[: meta.syntax.start], syntax, data[meta.syntax.stop : meta.end], inflated])
