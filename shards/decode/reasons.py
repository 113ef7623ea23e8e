"""List the reasons why an image cannot be used: fixed sentences, so that none holds a value or name of the file."""

EMPTY = "an empty file"
ZEROS = "zeros instead of an image: a download that did not finish"
WEB_PAGE = "a web page or an XML message instead of an image: the download was refused"
LFS_POINTER = "a Git LFS pointer instead of the image: run `git lfs pull`"
ANNEX_POINTER = "a git-annex pointer instead of the image: run `git annex get`"
ZIP = "a zip archive instead of an image: unpack it"
GZIP = "a gzip file instead of an image: unpack it"
ARCHIVE = "an archive instead of an image: unpack it"
OTHER_FORMAT = "WebP, HEIC, AVIF, JPEG XL or bare JPEG 2000, which are not read: convert it to PNG"
NOT_AN_IMAGE = "none of the kinds of image that are read (PNG, JPEG, TIFF, BMP, GIF, DICOM)"
NOT_DICOM = "no DICOM file"

TOO_LARGE = "more pixels than the bound (of shards: shard.max_source_megapixels)"
TOO_MANY_BYTES = "a larger file than an image within the bound can be (of shards: shard.max_source_megapixels)"
DAMAGED = "truncated or damaged image data"
MULTI_FRAME = "several frames or pages; one image a file is read"
DEEP_COLOUR = "16-bit colour (8-bit colour and 16-bit grey are read)"
UNREAD_JPEG = "a JPEG of more than 8 bits, or a lossless one, which are not read: convert it to PNG"
UNREAD_TIFF = "a TIFF of a kind that is not read (8- and 16-bit grey and 8-bit colour are): convert it to PNG"
UNREAD_VARIANT = "a TIFF or BMP that is damaged or of a kind that is not read (8- and 16-bit grey and 8-bit colour are)"
RAW_SIZE = "a raw file of another size than its layout says"

NO_PIXELS = "a DICOM file without an image"
NO_PIXEL_DATA = "a DICOM file that ends before its image"
TRUNCATED = "a DICOM file with less pixel data than its header says"
OTHER_SIZE = "compressed DICOM pixels of another size than the header says"
OTHER_DEPTH = "compressed DICOM pixels of more bits than the header allocates"
UNKNOWN_SYNTAX = "DICOM in a transfer syntax that is not the standard's, which is not read"
UNSAID_SYNTAX = "compressed DICOM pixels, and no transfer syntax that says how"
COLOUR_SPACE = "DICOM colours of a kind that is not read (MONOCHROME1 and 2, RGB and YBR in 8 bits are)"
BIT_DEPTH = "DICOM pixels of other than 8 or 16 bits"
EMPTY_LUT = "a DICOM lookup table without entries"

DEEP_MASK = "a mask with values above 255"
DICOM_MASK = "a DICOM file where a mask was expected"


class UnreadableImageError(Exception):
    """The image goes to quarantine; the message is the reason, and holds no name and no value of the file."""


class TooLargeError(UnreadableImageError):
    """The image has more pixels than are read; the numbers are for whoever holds it, and the message has neither.

    Attributes:
        num_pixels: Pixels of the image; None where they were not counted.
        max_pixels: The bound; None where it was one of bytes.
    """

    def __init__(self, num_pixels: int | None = None, max_pixels: float | None = None) -> None:
        super().__init__(num_pixels, max_pixels)
        self.num_pixels, self.max_pixels = num_pixels, max_pixels

    def __str__(self) -> str:
        return TOO_LARGE

    def explain(self, max_pixels: float, option: str) -> str:
        """Say what was found, what was expected and what to do.

        Args:
            max_pixels: The bound that was asked for.
            option: Whatever raises it; empty where nothing does.
        """
        bound = max_pixels if self.max_pixels is None else self.max_pixels
        found = f"more than {bound:,.0f}" if self.num_pixels is None else f"{self.num_pixels:,}"
        # Pillow has a bound of its own, which no option raises.
        remedy = f", or raise {option}" if option and bound >= max_pixels else ""
        return f"{found} pixels, and at most {bound:,.0f} are read: make it smaller{remedy}"
