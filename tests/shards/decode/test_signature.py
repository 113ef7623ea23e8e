"""Files are what their content says, and what pretends to be an image is named."""

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.decode import reasons
from shards.decode.signature import kind_of
from tests.shards.decode.dicom_files import data_of, dataset_of
from tests.shards.decode.files import decoded, encoded, reason_for
from tests.support.datasets import smooth_image

PIXELS = smooth_image(20, 30, 1)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", encoded(PIXELS))
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:xz") as archive:
        info = tarfile.TarInfo("a.png")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"abcd"))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "GIF"])
def test_a_file_is_what_its_content_says(kind: str) -> None:
    assert kind_of(encoded(PIXELS, kind)) == kind


def test_dicom_is_read_by_the_same_call() -> None:
    data = data_of(dataset_of(PIXELS))
    assert kind_of(data) == "DICOM"
    assert np.array_equal(decoded(data).pixels, PIXELS)


def test_a_preamble_that_holds_another_formats_header_is_dicom_still() -> None:
    data = b"II*\0" + data_of(dataset_of(PIXELS))[4:]
    assert np.array_equal(decoded(data).pixels, PIXELS)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", reasons.EMPTY),
        (bytes(5000), reasons.ZEROS),
        (b"\xef\xbb\xbf\r\n <!DOCTYPE html><html><body>Please sign in</body></html>", reasons.WEB_PAGE),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", reasons.WEB_PAGE),
        (LFS, reasons.LFS_POINTER),
        (b"/annex/objects/SHA256E-s123--abc.png\n", reasons.ANNEX_POINTER),
        (gzip.compress(encoded(PIXELS)), reasons.GZIP),
        (zipped(), reasons.ZIP),
        (tarred(), reasons.ARCHIVE),
        (encoded(Image.fromarray(PIXELS), "WEBP"), reasons.OTHER_FORMAT),
        (b"\0\0\0\x1cftypavif", reasons.OTHER_FORMAT),
        (b"a,b\n1,2\n", reasons.NOT_AN_IMAGE),
        (b"BM is how this text begins, and it is no bitmap", reasons.NOT_AN_IMAGE),
        (b"\x7fELF" + bytes(200), reasons.NOT_AN_IMAGE),
    ],
)
def test_what_is_no_image_has_its_own_reason(data: bytes, reason: str) -> None:
    assert reason_for(data) == reason


def test_reasons_are_all_different() -> None:
    texts = [value for name, value in vars(reasons).items() if name.isupper()]
    assert len(set(texts)) == len(texts)


def test_no_module_makes_pillow_accept_truncated_files() -> None:
    from PIL import ImageFile

    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    folder = Path(__file__).parents[3] / "shards"
    assert not [path for path in folder.rglob("*.py") if "LOAD_TRUNCATED_IMAGES" in path.read_text("utf-8")]
