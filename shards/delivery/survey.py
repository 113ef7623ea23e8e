"""Survey a delivery before its batch is registered: how bright and how coloured its images are, what cannot be read."""

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int

from shards.core.canvas import Placement, cell_statistics, foreground_sums, is_coloured, with_channels
from shards.core.errors import SourceError
from shards.core.normalisation import Normalisation
from shards.core.params import GridParams, MeasuredParams, ShardParams
from shards.core.records import Record
from shards.decode import UnreadableImageError, decode
from shards.decode.annotations import OTHER_SIZE, has_coordinates, misfit_of
from shards.decode.patience import read_patiently
from shards.decode.reasons import TooLargeError
from shards.runtime.progress import progress

_MAX_SAMPLED = 256
_DECIMALS = 4


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The appearance of the images of a delivery.

    Attributes:
        channels: 3 if any is coloured.
        normalisation: Mean and deviation of the foreground, in [0, 1]; of coloured images those of each channel.
        in_grey: Mean and deviation of the foreground, in [0, 1], as a network of one channel sees the images.
        unread: Reason why images cannot be read → number of images, of those that were looked at.
        num_images: Images that were looked at.
    """

    channels: Literal[1, 3]
    normalisation: Normalisation
    in_grey: Normalisation
    unread: Counter[str]
    num_images: int

    @property
    def measured(self) -> MeasuredParams:
        """Mean and deviation as a batch's file has them."""
        grey = self.in_grey if self.channels == 3 else Normalisation((), ())
        return MeasuredParams(
            mean=self.normalisation.mean,
            std=self.normalisation.std,
            grey_mean=next(iter(grey.mean), None),
            grey_std=next(iter(grey.std), None),
        )


def survey_images(root: Path, records: Sequence[Record], grid: GridParams, shard: ShardParams) -> Survey:
    """Look at up to 256 images spread evenly over the delivery; unreadable ones are counted, and left to `shard`.

    Raises:
        SourceError: none can be read, none has any foreground, or boxes, landmarks and polygons do not fit most images
            that have some.
    """
    chosen = records[:: -(-len(records) // _MAX_SAMPLED)]
    fit = _Fit()
    max_pixels = shard.max_source_megapixels * 1e6
    over_channels, of_channels, in_grey = _Sums(1), _Sums(3), _Sums(1)
    unread = Counter[str]()
    has_colour = False
    too_large: list[TooLargeError] = []
    for record in progress(chosen, total=len(chosen), description="look", unit="image"):
        if record.known_defect is not None:
            unread[record.known_defect] += 1
            continue
        try:
            data = read_patiently(root / record.image.path, max_pixels)
            image = decode(data, max_pixels=max_pixels, raw=record.raw).pixels
        except OSError as error:  # whose own text names the file
            unread[error.strerror or "not readable"] += 1
            continue
        except TooLargeError as error:
            too_large.append(error)
            continue
        except UnreadableImageError as error:
            unread[str(error)] += 1
            continue
        fit.add(record, image.shape[:2])
        canvas = Placement.of(image, grid.spec.canvas_px, grid.trim_level).place_image(image)
        cells = cell_statistics(canvas, grid.spec, shard.foreground)
        over_channels.add(np.array([[cells.total], [cells.total_squares]]), cells.num_values)
        num_pixels = int(cells.foreground.sum()) * grid.spec.cell_px**2
        of_channels.add(foreground_sums(canvas, cells.foreground, grid.spec), num_pixels)
        in_grey.add(foreground_sums(with_channels(canvas, 1), cells.foreground, grid.spec), num_pixels)
        has_colour = has_colour or is_coloured(image)
    if too_large:
        largest = max(too_large, key=lambda error: error.num_pixels or 0)
        found = largest.explain(max_pixels, "shard.max_source_megapixels")
        unread[f"too large: the largest has {found}"] = len(too_large)
    num_unread = unread.total()
    if num_unread == len(chosen):
        raise SourceError(f"{root}: looked at {len(chosen)} images, none can be read:{list_reasons(unread)}")
    if not over_channels.num_values:
        raise SourceError(
            f"{root}: looked at {len(chosen)} images, could read {len(chosen) - num_unread} and found no foreground in "
            f"them (shard.foreground); expected image files with something in them{list_reasons(unread)}"
        )
    fit.check(root)
    grey = in_grey.normalisation() if has_colour else over_channels.normalisation()
    own = of_channels.normalisation() if has_colour else grey
    return Survey(
        channels=3 if has_colour else 1, normalisation=own, in_grey=grey, unread=unread, num_images=len(chosen)
    )


def list_reasons(reasons: Counter[str]) -> str:
    """Write a line for each reason with its number, the most frequent first."""
    return "".join(f"\n{number:6}  {reason}" for reason, number in reasons.most_common())


class _Fit:
    """Compares the coordinates that records have with the sizes of their images."""

    def __init__(self) -> None:
        self.num_images = 0
        self.misfits: list[str] = []

    def add(self, record: Record, size: tuple[int, int]) -> None:
        """Compare one record with the (height, width) of its image; one without coordinates does not count."""
        if not has_coordinates(record):
            return
        self.num_images += 1
        misfit = misfit_of(record, size)
        if misfit is not None:
            stated = f" of {record.size[0]} x {record.size[1]} pixels" if record.size and misfit == OTHER_SIZE else ""
            self.misfits.append(f"an image of {size[0]} x {size[1]} pixels, coordinates {misfit}{stated}")

    def check(self, root: Path) -> None:
        """Refuse coordinates that fit few images; a few misfits are a warning, for the stage `shard` leaves them out.

        Raises:
            SourceError: most images that have coordinates are of another size.
        """
        if not self.misfits:
            return
        found = (
            f"{root}: boxes, landmarks or polygons do not fit {len(self.misfits)} of the {self.num_images} images that "
            f"have some and were looked at, first {self.misfits[0]}"
        )
        if 2 * len(self.misfits) > self.num_images:
            raise SourceError(
                f"{found}; expected the published images, of which no copy was resized or cropped: register those, or "
                "use the copies without coordinates, with --source folder and a CSV of labels"
            )
        print(f"warning: {found}; the shards leave these out, and say how many there were", file=sys.stderr)


class _Sums:
    """Adds up grey levels and their squares, as whole numbers, so that their order does not matter."""

    def __init__(self, channels: int) -> None:
        self.sums = np.zeros((2, channels), np.int64)
        self.num_values = 0

    def add(self, sums: Int[np.ndarray, "2 channels"], num_values: int) -> None:
        """Add the sums of one image; a grey one counts the same in every channel."""
        self.sums += sums
        self.num_values += num_values

    def normalisation(self) -> Normalisation:
        """Return mean and deviation of each channel, in [0, 1]; the deviation is at least one grey level."""
        totals, squares = self.sums.tolist()
        means = [total / self.num_values for total in totals]
        stds = [math.sqrt(max(sq / self.num_values - mean**2, 1.0)) for sq, mean in zip(squares, means, strict=True)]
        mean, std = (tuple(round(level / 255, _DECIMALS) for level in levels) for levels in (means, stds))
        return Normalisation(mean, std)
