"""PNG, JPEG and TIFF files with canaries in every place where such files hold text, and the CSV that goes with them."""

import io
from pathlib import Path

from PIL import Image, ImageCms
from PIL.ExifTags import GPS, IFD, Base
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from tests.behaviour.privacy.canaries import SHORT, Canaries
from tests.support.datasets import write_csv

_XMP = "<x:xmpmeta xmlns:x='adobe:ns:meta/'><dc:creator>{}</dc:creator></x:xmpmeta>"
_XMP_TAG, _IPTC_TAG, _PHOTOSHOP_TAG = 700, 33723, 34377
_PROFILE_NAME = "sRGB built-in".encode("utf-16-be")


def _exif(canaries: Canaries) -> Image.Exif:
    exif = Image.Exif()
    for tag in (Base.ImageDescription, Base.Artist, Base.Copyright, Base.HostComputer, Base.DocumentName, Base.Model):
        exif[tag] = canaries.text()
    exif[Base.DateTime] = "1731:01:01 17:31:01"
    exif[Base.XPComment] = canaries.text().encode("utf-16-le")
    exif[Base.Orientation] = 1
    inner = exif.get_ifd(IFD.Exif)
    inner[Base.UserComment] = b"ASCII\0\0\0" + canaries.text().encode()
    inner[Base.ImageUniqueID] = canaries.text()
    inner[Base.BodySerialNumber] = canaries.text()
    exif.get_ifd(IFD.GPSInfo)[GPS.GPSAreaInformation] = canaries.data()
    return exif


def _profile(canaries: Canaries) -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert _PROFILE_NAME in profile
    return profile.replace(_PROFILE_NAME, f"{canaries.text():<13}".encode("utf-16-be"))


def _iptc(canaries: Canaries) -> bytes:
    """An Image Resource Block with one IPTC record: by-line."""
    text = canaries.text().encode()
    record = b"\x1c\x02\x50" + len(text).to_bytes(2, "big") + text
    record += b"\0" * (len(record) % 2)
    return b"8BIM\x04\x04\0\0" + len(record).to_bytes(4, "big") + record


def png(canaries: Canaries) -> bytes:
    info = PngInfo()
    info.add_text("Comment", canaries.text())
    info.add_text(canaries.text(), canaries.text(), zip=True)
    info.add_itxt("Author", canaries.text(), lang="en", tkey=canaries.text())
    info.add_itxt("Title", canaries.text(), zip=True)
    info.add_itxt("XML:com.adobe.xmp", _XMP.format(canaries.text()))
    info.add(b"teSt", canaries.data())
    file = io.BytesIO()
    Image.fromarray(canaries.picture()).save(
        file, "PNG", pnginfo=info, exif=_exif(canaries), icc_profile=_profile(canaries), dpi=(SHORT, SHORT)
    )
    return file.getvalue() + canaries.data()


def jpeg(canaries: Canaries) -> bytes:
    iptc = b"Photoshop 3.0\0" + _iptc(canaries)
    file = io.BytesIO()
    Image.fromarray(canaries.picture()).save(
        file,
        "JPEG",
        comment=canaries.text(),
        exif=_exif(canaries),
        xmp=_XMP.format(canaries.text()).encode(),
        icc_profile=_profile(canaries),
        extra=b"\xff\xed" + (len(iptc) + 2).to_bytes(2, "big") + iptc,
    )
    return file.getvalue() + canaries.data()


def tiff(canaries: Canaries) -> bytes:
    tags = ImageFileDirectory_v2()
    for tag in (Base.ImageDescription, Base.Artist, Base.Copyright, Base.HostComputer, Base.DocumentName, Base.Make):
        tags[tag] = canaries.text()
    for tag in (_XMP_TAG, _IPTC_TAG, _PHOTOSHOP_TAG):
        tags[tag] = canaries.data()
        tags.tagtype[tag] = 1
    tags[65000] = canaries.text()
    file = io.BytesIO()
    Image.fromarray(canaries.picture()).save(
        file, "TIFF", tiffinfo=tags, icc_profile=_profile(canaries), exif=_exif(canaries), compression="tiff_lzw"
    )
    return file.getvalue()


def _damaged(data: bytes, suffix: str) -> bytes:
    """With its canaries: a TIFF begins with its pixels, the others end with them."""
    return data[:8] + b"\xff" * 300 + data[308:] if suffix == "tif" else data[: -len(data) // 8]


def write_raster_corpus(root: Path, labels: Path, canaries: Canaries) -> None:
    """Twelve whole images, a damaged one of each kind, and a CSV whose patients and studies are canaries."""
    root.mkdir(parents=True)
    rows = []
    for suffix, write in {"png": png, "jpg": jpeg, "tif": tiff}.items():
        for number in range(5):
            data = write(canaries)
            (root / f"{number}.{suffix}").write_bytes(data if number < 4 else _damaged(data, suffix))
            rows.append((f"{number}.{suffix}", canaries.text(), canaries.uid(), "PA", "F", 73, number % 2))
    write_csv(labels, ("path", "patient", "study", "view", "sex", "age_years", "Effusion"), rows)
