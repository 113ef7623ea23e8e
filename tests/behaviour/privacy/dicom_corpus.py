"""DICOM files in which everything that is not needed to show the picture is a canary."""

import io
from pathlib import Path

import numpy as np
from pydicom import DataElement, Dataset, Sequence, dcmwrite
from pydicom.datadict import DicomDictionary, RepeatersDictionary, dictionary_VR, tag_for_keyword
from pydicom.tag import Tag
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from tests.behaviour.privacy.canaries import AGE, SHORT, WHOLE, Canaries
from tests.shards.decode.dicom_files import dataset_of

NEEDED = {
    "SOPClassUID": ComputedRadiographyImageStorage,
    "SpecificCharacterSet": "ISO_IR 192",
    "ImageType": ["DERIVED", "PRIMARY"],
    "ConversionType": "DF",
    "Modality": "CR",
    "PresentationIntentType": "FOR PRESENTATION",
    "ViewPosition": "PA",
    "PatientSex": "F",
    "PatientAge": AGE,
    "BurnedInAnnotation": "NO",
    "ImagerPixelSpacing": [0.2, 0.1],
    "NominalScannedPixelSpacing": [0.2, 0.1],
    "PixelSpacing": [0.2, 0.1],
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME1",
    "PlanarConfiguration": 0,
    "NumberOfFrames": 1,
    "Rows": 96,
    "Columns": 80,
    "BitsAllocated": 16,
    "BitsStored": 12,
    "HighBit": 11,
    "PixelRepresentation": 0,
    "WindowCenter": 2000,
    "WindowWidth": 4000,
    "VOILUTFunction": "LINEAR",
    "RescaleSlope": 1,
    "RescaleIntercept": 0,
}
"""Elements that are read and must make sense for the picture to be shown: numbers and words of the standard."""

TABLES = ("ModalityLUTSequence", "VOILUTSequence")
"""Read instead of a window, so left empty where there is one."""
OTHER_PIXELS = ("FloatPixelData", "DoubleFloatPixelData", "PixelDataProviderURL")
"""A file has pixels of one kind."""
NOT_OF_A_FILE = {tag for tag in DicomDictionary if tag >> 16 in (0x0000, 0x0002, 0xFFFE)}
"""Elements of network messages, of the file meta information (set apart) and delimiters."""
EXEMPT = (
    {Tag(tag_for_keyword(name)) for name in (*NEEDED, *TABLES, *OTHER_PIXELS, "PixelData")}  # type: ignore[arg-type]
    | {Tag(tag) for tag in NOT_OF_A_FILE}
)

_BYTES = ("OB", "OW", "OF", "OD", "OL", "OV", "UN", "OB or OW")
_WORDS = ("US", "SS", "US or SS", "US or OW", "US or SS or OW")
_GROUPS = ("02", "1E")


SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)


def every_tag(canaries: Canaries) -> Dataset:
    """A radiograph with every element of the standard's dictionary, private ones, overlays, curves and an icon."""
    dataset = dataset_of(canaries.picture().astype(np.uint16) * 16)
    for tag, (vr, *_) in DicomDictionary.items():
        if Tag(tag) not in EXEMPT:
            dataset.add(_element(tag, vr, canaries))
    for mask, (vr, *_) in RepeatersDictionary.items():
        for group in _GROUPS:
            tag = int(mask[:2] + mask[2:].replace("xx", group, 1).replace("x", "1"), 16)
            dataset.add(_element(tag, vr, canaries))
    for group in (0x0009, 0x0029, 0x7FE1):
        block = dataset.private_block(group, canaries.text(), create=True)
        for number, vr in enumerate(("LO", "PN", "UN", "DA", "DS", "SQ", "UI", "OB")):
            block.add_new(number, vr, _value(vr, canaries))
    dataset.IconImageSequence[0].PixelData = canaries.data()
    dataset.IconImageSequence[0]["PixelData"].VR = "OB"
    for name, value in NEEDED.items():
        setattr(dataset, name, value)
    for tag, (vr, *_) in DicomDictionary.items():
        if tag >> 16 == 0x0002 and tag & 0xFFFF > 1 and Tag(tag) != tag_for_keyword("TransferSyntaxUID"):
            dataset.file_meta.add(_element(tag, vr, canaries))
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.preamble = canaries.data() * 8
    return dataset


def _element(tag: int, vr: str, canaries: Canaries) -> DataElement:
    kind = "OB" if vr == "OB or OW" else vr.split(" or ")[0]
    return DataElement(tag, kind, _value(vr, canaries))


def _value(vr: str, canaries: Canaries) -> object:
    """As much of a canary as the type holds."""
    if vr == "SQ":
        item = Dataset()
        item.PatientName, item.PatientComments, item.StudyDate = canaries.text(), canaries.text(), canaries.date()
        item.ReferencedSOPInstanceUID, item.PatientWeight = canaries.uid(), str(canaries.whole())
        item.add_new(0x00091010, "LO", canaries.text())
        inner = Dataset()
        inner.ImageComments = canaries.text()
        item.add_new(tag_for_keyword("RequestAttributesSequence"), "SQ", Sequence([inner]))  # type: ignore[arg-type]
        return Sequence([item])
    if vr in _BYTES:
        return canaries.data()
    if vr in _WORDS:
        return SHORT
    match vr:
        case "UI":
            return canaries.uid()
        case "UR":
            return f"http://{canaries.text()}.example/"
        case "PN":
            return f"{canaries.text()}^{canaries.text()}"
        case "DA":
            return canaries.date()
        case "TM":
            return canaries.time()
        case "DT":
            return canaries.date() + canaries.time()
        case "AS":
            return AGE
        case "DS" | "IS":
            return str(canaries.whole())
        case "UL" | "SL" | "UV" | "SV":
            return canaries.whole()
        case "FD":
            return float(canaries.whole())
        case "FL":
            return float(np.float32(WHOLE))
        case "AT":
            return WHOLE
    return canaries.text()


def data_of(dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    dataset.file_meta.TransferSyntaxUID = syntax
    file = io.BytesIO()
    dcmwrite(file, dataset, force_encoding=True, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    return file.getvalue()


def whole_files(canaries: Canaries) -> dict[str, bytes]:
    """Readable images: every element, in three transfer syntaxes; then one lie in each element that is read."""
    files = {f"whole/{number}": data_of(every_tag(canaries), syntax) for number, syntax in enumerate(SYNTAXES)}
    return files | {f"lies/{name}": lying(canaries, name) for name in LIES}


def small(canaries: Canaries, **tags: object) -> Dataset:
    """A radiograph with the needed elements and ids of a patient; None takes an element away."""
    dataset = dataset_of(canaries.picture().astype(np.uint16) * 16)
    given = {
        **NEEDED,
        "PatientName": f"{canaries.text()}^{canaries.text()}",
        "PatientID": canaries.text(),
        "StudyInstanceUID": canaries.uid(),
        "SeriesInstanceUID": canaries.uid(),
        "SOPInstanceUID": canaries.uid(),
        **tags,
    }
    for name, value in given.items():
        if value is not None:
            setattr(dataset, name, value)
        elif name in dataset:
            delattr(dataset, name)
    dataset.file_meta.MediaStorageSOPInstanceUID = canaries.uid()
    dataset.preamble = canaries.data() * 8
    return dataset


LIES = (
    *("SpecificCharacterSet", "IssuerOfPatientID", "SeriesInstanceUID", "StudyInstanceUID", "ViewPosition"),
    *("PatientSex", "PatientAge", "PatientBirthDate", "StudyDate", "PresentationIntentType", "ImageType"),
    *("ConversionType", "BurnedInAnnotation", "VOILUTFunction", "PixelSpacingCalibrationType", "WindowCenter"),
    *("WindowWidth", "RescaleSlope", "ImagerPixelSpacing", "PixelSpacing", "PixelPaddingValue"),
    *("PlanarConfiguration", "SOPInstanceUID"),
)
"""Elements that are read, of which free text in one leaves an image."""
FATAL_LIES = (
    *("Rows", "BitsStored", "HighBit", "NumberOfFrames", "PixelRepresentation"),
    *("PhotometricInterpretation", "SamplesPerPixel", "BitsAllocated", "ModalityLUTSequence", "VOILUTSequence"),
)
"""Those of which it leaves a file that is taken for an image and cannot be shown."""


def lying(canaries: Canaries, name: str) -> bytes:
    """A radiograph with text in one element, under the element's own type, whatever that allows."""
    tag = Tag(tag_for_keyword(name))  # type: ignore[arg-type]
    dataset = small(canaries)
    if tag not in dataset:
        dataset.add_new(tag, "LT", canaries.text())
    data = data_of(dataset)
    # Spliced in, for pydicom would not write it.
    written = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little") + dataset[tag].VR.encode()
    assert data.count(written) == 1
    start = data.index(written)
    stop = start + 8 + int.from_bytes(data[start + 6 : start + 8], "little")
    vr = dictionary_VR(tag)[:2]
    text = canaries.text().encode() + b" "
    header = written[:4] + (b"LT" if vr == "SQ" else vr.encode()) + len(text).to_bytes(2, "little")
    return data[:start] + header + text + data[stop:]


def damaged_files(canaries: Canaries) -> dict[str, bytes]:
    """Images that go to quarantine when they are read whole."""
    whole = data_of(every_tag(canaries))
    unknown_syntax = data_of(small(canaries)).replace(
        ExplicitVRLittleEndian.encode() + b"\0", (canaries.uid()[-19:] + " " * 20)[:20].encode()
    )
    return {
        "damaged/cut off": whole[:-2000],
        "damaged/syntax": unknown_syntax,
        **{f"damaged/{name}": lying(canaries, name) for name in FATAL_LIES},
    }


def other_files(canaries: Canaries) -> dict[str, bytes]:
    """What is left out of a tree."""
    whole = data_of(every_tag(canaries))
    uid = canaries.uid()
    return {
        "other/DICOMDIR": whole,
        "other/note.txt": canaries.text().encode(),
        "other/header": whole[:40_000],
        "other/report": data_of(small(canaries, Modality="SR")),
        "other/capture": data_of(small(canaries, SOPClassUID=SecondaryCaptureImageStorage, ConversionType="WSD")),
        "other/frames": data_of(small(canaries, NumberOfFrames=2)),
        "other/burned": data_of(small(canaries, BurnedInAnnotation="YES")),
        "other/nobody": data_of(small(canaries, PatientID=None)),
        "other/raw": data_of(small(canaries, PresentationIntentType="FOR PROCESSING")),
        "other/one": data_of(small(canaries, SOPInstanceUID=uid)),
        "other/other one": data_of(small(canaries, SOPInstanceUID=uid)),
        "other/copy a": whole,
        "other/copy b": whole,
        "other/modality": lying(canaries, "Modality"),
    }


def write_dicom_corpus(root: Path, canaries: Canaries) -> None:
    for name, data in (whole_files(canaries) | damaged_files(canaries) | other_files(canaries)).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
