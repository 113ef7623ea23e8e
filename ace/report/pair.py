"""The crop pair that explains the grid, drawn in canvas pixels."""

from dataclasses import dataclass

from ace.data.crops import resample
from ace.drawing.pictures import DrawnBox, data_uri
from shards.core.grid import CropPair, GridSpec, Rectangle, crop_bank
from shards.reading.reader import Sample


@dataclass(frozen=True, kw_only=True)
class PairDrawing:
    """A crop pair as it lies on the canvas and as the model sees it."""

    canvas: str
    canvas_px: int
    coarse: str
    fine: str
    crop_px: int
    cell_px: float
    grid: DrawnBox
    lines: list[float]
    boxes: dict[str, DrawnBox]
    overlaps: dict[str, DrawnBox]
    whole: DrawnBox
    parts: list[DrawnBox]
    k: int
    l: int
    n: int
    t: int
    key: str
    is_stored: bool


def draw_pair(sample: Sample, spec: GridSpec, seed: int) -> PairDrawing:
    """Draw the crop pair of one sample's bank that `seed` chooses, with one coarse token and the fine tokens it covers.

    A bank without pairs is drawn afresh. A pair with k·l > 1 is preferred: it shows what composition means.
    """
    stored = [CropPair.from_json(item) for item in sample.meta["grid"]["bank"]]
    bank = stored or crop_bank(spec, sample.key, seed, 1)
    bank = [pair for pair in bank if pair.k * pair.l > 1] or bank
    pair = bank[seed % len(bank)]
    cell_px, crop_cell_px = pair.jitter[2] / spec.n, spec.crop_px / spec.t
    overlap = {"coarse": pair.overlap_coarse(spec.t), "fine": pair.overlap_fine(spec.t)}
    row, col = ((overlap["coarse"][axis] + overlap["coarse"][axis + 2]) // 2 for axis in (0, 1))
    fine_row = pair.coarse[0] + row * pair.k - pair.fine[0]
    fine_col = pair.coarse[1] + col * pair.l - pair.fine[1]
    windows = {"coarse": pair.window("coarse", spec), "fine": pair.window("fine", spec)}
    return PairDrawing(
        canvas=data_uri(sample.image, kind="jpeg"),
        canvas_px=spec.canvas_px,
        coarse=data_uri(resample(sample.image, windows["coarse"], 2 * spec.crop_px), kind="jpeg"),
        fine=data_uri(resample(sample.image, windows["fine"], 2 * spec.crop_px), kind="jpeg"),
        crop_px=spec.crop_px,
        cell_px=crop_cell_px,
        grid=DrawnBox(row=pair.jitter[0], col=pair.jitter[1], height=pair.jitter[2], width=pair.jitter[2]),
        lines=[place * cell_px for place in range(spec.n + 1)],
        boxes={
            name: DrawnBox(row=w[0], col=w[1], height=w[2] - w[0], width=w[3] - w[1]) for name, w in windows.items()
        },
        overlaps={name: _scaled(rectangle, crop_cell_px) for name, rectangle in overlap.items()},
        whole=DrawnBox(row=row * crop_cell_px, col=col * crop_cell_px, height=crop_cell_px, width=crop_cell_px),
        parts=[
            DrawnBox(
                row=(fine_row + i) * crop_cell_px,
                col=(fine_col + j) * crop_cell_px,
                height=crop_cell_px,
                width=crop_cell_px,
            )
            for i in range(pair.k)
            for j in range(pair.l)
        ],
        k=pair.k,
        l=pair.l,
        n=spec.n,
        t=spec.t,
        key=sample.key,
        is_stored=bool(stored),
    )


def _scaled(rectangle: Rectangle, cell_px: float) -> DrawnBox:
    row0, col0, row1, col1 = rectangle
    return DrawnBox(
        row=row0 * cell_px,
        col=col0 * cell_px,
        height=max(row1 - row0, 0) * cell_px,
        width=max(col1 - col0, 0) * cell_px,
    )
