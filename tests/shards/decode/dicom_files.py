"""DICOM files written with pydicom and compressed with GDCM."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
"""Every 12-bit value once."""


def dataset_of(pixels: np.ndarray, *, bits: int = 12, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.PatientName = "Doe^Jane"
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 and pixels.shape[2] == 3 else 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = bits if dataset.BitsAllocated == 16 else 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def data_of(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def compressed(data: bytes, syntax: str, folder: Path) -> bytes:
    """A file in another transfer syntax, by GDCM and its name for the syntax."""
    gdcm = pytest.importorskip("gdcm", reason="NOT TESTED: compressed DICOM needs the extra `dicom` (python-gdcm)")
    plain, packed = folder / "plain.dcm", folder / "packed.dcm"
    plain.write_bytes(data)
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(plain))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change(), syntax
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(packed))
    assert writer.Write()
    return packed.read_bytes()
