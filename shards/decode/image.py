"""An image file of any kind that is read, told apart by its content."""

from shards.core.records import RawLayout
from shards.decode.raster import decode_raster
from shards.decode.raw import decode_raw
from shards.decode.result import Decoded
from shards.decode.signature import kind_of


def decode(data: bytes, *, max_pixels: float, raw: RawLayout | None = None) -> Decoded:
    """Decode a PNG, JPEG, TIFF, BMP, GIF, DICOM or raw file to its end, upright and in 8 bits.

    Alpha is dropped, palettes are resolved, 16-bit grey goes through `grey.choose_window`, DICOM through what it says
    of its own display.

    Args:
        data: The whole file.
        max_pixels: Larger images are refused before they are decoded.
        raw: The layout of a file that has no header, in place of any other kind.

    Raises:
        UnreadableImageError: with the reason for quarantine.
        DecoderError: compressed DICOM pixels, or a JPEG of rare sampling, need a process that cannot be started.
    """
    if raw is not None:
        return decode_raw(data, raw, max_pixels=max_pixels)
    kind = kind_of(data)
    if kind == "DICOM":
        # Not at the top: pydicom takes as long to import as half of the rest, and few batches need it.
        from shards.decode.dicom_image import decode_dicom

        return decode_dicom(data, max_pixels=max_pixels)
    return decode_raster(data, kind, max_pixels=max_pixels)
