"""From an image file's bytes to the canvas: safe decoding, aspect-keeping resize, and what each cell holds."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from shards.grid import GridSpec
from shards.params import ForegroundParams

Pixels = UInt8[np.ndarray, "height width"] | UInt8[np.ndarray, "height width 3"]
Canvas = UInt8[np.ndarray, "side side"] | UInt8[np.ndarray, "side side 3"]

NOT_AN_IMAGE = "neither PNG nor JPEG"
DAMAGED = "truncated or damaged image data"
TOO_LARGE = "more pixels than shard.max_source_megapixels"
DAMAGED_MASK = "a mask is damaged or not of the image's size"
DEEP_COLOUR = "16-bit colour PNG (8-bit colour and 16-bit grey are read)"

_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff")
# A colour is a hue: the channels of a grey JPEG saved as RGB may differ by a few levels.
_MAX_GREY_DIFFERENCE = 8


class UnreadableImageError(Exception):
    """The image goes to quarantine; the message is one of this module's reasons and names no file."""


def decode_image(data: bytes, max_pixels: float) -> Pixels:
    """The pixels of a PNG or JPEG file, upright (EXIF orientation applied), in 8 bits.

    Alpha is dropped, palettes are resolved, 16-bit grey is scaled from its own minimum and maximum to 0..255.

    Raises:
        UnreadableImageError: with the reason for quarantine.
    """
    try:
        with warnings.catch_warnings():
            # Pillow's own pixel bound and its remarks on odd metadata; ours is checked below, before decoding.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                if image.width * image.height > max_pixels:
                    raise UnreadableImageError(TOO_LARGE)
                if image.format == "PNG" and data[24] == 16 and data[25] != 0:  # IHDR: bit depth, colour type
                    raise UnreadableImageError(DEEP_COLOUR)
                image.load()
                return eight_bits(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        raise UnreadableImageError(TOO_LARGE) from None
    except UnidentifiedImageError:
        raise UnreadableImageError(DAMAGED if data.startswith(_SIGNATURES) else NOT_AN_IMAGE) from None
    except UnreadableImageError:
        raise
    # Pillow's parsers let nearly any error through on damaged files; one file must not end the batch.
    except Exception:
        raise UnreadableImageError(DAMAGED) from None


def eight_bits(image: Image.Image) -> Pixels:
    """A decoded image as grey or colour in 8 bits, by the rules of `decode_image`."""
    if image.mode.startswith("I"):
        return full_range(np.asarray(image))
    return np.array(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))


def full_range(values: np.ndarray) -> UInt8[np.ndarray, "height width"]:
    """Grey values of any depth, their own minimum..maximum as 0..255; a flat image is black."""
    levels = values.astype(np.float64)
    low, high = levels.min(), levels.max()
    scaled: UInt8[np.ndarray, "height width"] = np.round((levels - low) * (255 / ((high - low) or 1.0))).astype(
        np.uint8
    )
    return scaled


def is_coloured(image: Pixels) -> bool:
    """Whether any pixel has a hue; a grey image saved as RGB has none."""
    return image.ndim == 3 and bool((np.ptp(image, axis=2) > _MAX_GREY_DIFFERENCE).any())


def with_channels(image: Pixels, channels: int) -> Pixels:
    """The image as one grey channel (luma) or as three equal or coloured ones."""
    if channels == 1 and image.ndim == 3:
        return np.array(Image.fromarray(image).convert("L"))
    if channels == 3 and image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=2)
    return image


@dataclass(frozen=True)
class Placement:
    """Where an image lies on the canvas: scaled to fit with its aspect kept, centred, the rest background (0)."""

    canvas_px: int
    source_height: int
    source_width: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image on the canvas."""
        longest = max(self.source_height, self.source_width)
        height, width = (
            max(1, round(side * self.canvas_px / longest)) for side in (self.source_height, self.source_width)
        )
        return height, width

    @property
    def offset(self) -> tuple[int, int]:
        """(row, col) of the image's first pixel on the canvas."""
        height, width = self.size
        return (self.canvas_px - height) // 2, (self.canvas_px - width) // 2

    @property
    def affine(self) -> list[list[float]]:
        """[[s, 0, row], [0, s, col]]: source to canvas, both in continuous pixels."""
        (height, width), (row, col) = self.size, self.offset
        return [[height / self.source_height, 0.0, float(row)], [0.0, width / self.source_width, float(col)]]

    def place_image(self, image: Pixels) -> Canvas:
        """The image on the canvas, antialiased."""
        return self._place(image, Image.Resampling.BICUBIC)

    def place_mask(self, mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "side side"]:
        """A mask of the image on the canvas: nearest pixel."""
        placed: Bool[np.ndarray, "side side"] = self._place(mask.astype(np.uint8), Image.Resampling.NEAREST) > 0
        return placed

    def _place(self, image: Pixels, resampling: Image.Resampling) -> Canvas:
        height, width = self.size
        if image.shape[:2] != (height, width):
            image = np.asarray(Image.fromarray(image).resize((width, height), resampling))
        canvas = np.zeros((self.canvas_px, self.canvas_px, *image.shape[2:]), image.dtype)
        row, col = self.offset
        canvas[row : row + height, col : col + width] = image
        return canvas

    def place_point(self, point: tuple[float, float]) -> tuple[float, float]:
        """A (row, col) in continuous source pixels, on the canvas."""
        (row_scale, _, row), (_, col_scale, col) = self.affine
        return point[0] * row_scale + row, point[1] * col_scale + col


@dataclass(frozen=True)
class Cells:
    """What each of the n × n cells of a canvas holds.

    Attributes:
        mean: Grey levels 0..255 (over channels too), to two decimals as stored.
        std: The same, population standard deviation.
        foreground: Whether the cell shows anatomy (not collimation or air).
        total: Sum of the foreground's values.
        total_squares: Sum of their squares.
        num_values: Their number.
    """

    mean: Float[np.ndarray, "n n"]
    std: Float[np.ndarray, "n n"]
    foreground: Bool[np.ndarray, "n n"]
    total: int
    total_squares: int
    num_values: int


def cell_statistics(canvas: Canvas, spec: GridSpec, params: ForegroundParams) -> Cells:
    """Mean, deviation and foreground of every cell.

    A cell is foreground if its mean exceeds `min_mean` (tissue) or its deviation exceeds `min_std` (an edge through a
    dark cell). Padding, collimation and exposed air are dark *and* flat, so they are neither.
    """
    values = canvas.reshape(spec.n, spec.cell_px, spec.n, spec.cell_px, -1).astype(np.int64)
    sums: Int[np.ndarray, "n n"] = values.sum(axis=(1, 3, 4))
    squares: Int[np.ndarray, "n n"] = np.square(values).sum(axis=(1, 3, 4))
    count = values.size // spec.n**2
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    mean, std = np.round(mean, 2), np.round(std, 2)
    foreground = (mean > params.min_mean) | (std > params.min_std)
    total, total_squares = int(sums[foreground].sum()), int(squares[foreground].sum())
    return Cells(mean, std, foreground, total, total_squares, count * int(foreground.sum()))
