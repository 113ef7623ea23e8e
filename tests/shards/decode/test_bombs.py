"""Small files that would fill the memory, made for real and decoded in a process that watches its own."""

import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from shards.decode.reasons import DAMAGED, TOO_LARGE, UNREAD_VARIANT
from tests.shards.decode.dicom_files import data_of, dataset_of
from tests.shards.decode.files import chunk, encoded, png, tiff

_MAX_GROWTH_MB = 120
_WATCH = """
import resource, sys
from pathlib import Path
from shards.decode import UnreadableImageError, decode, decode_mask
paths = [Path(name) for name in sys.argv[1:]]
for function in (decode, decode_mask):
    for path in paths:
        data = path.read_bytes()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            outcome = str(function(data, max_pixels=1e6).pixels.shape if function is decode else "mask")
        except UnreadableImageError as error:
            outcome = str(error)
        growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        print(function.__name__, path.name, growth, outcome, sep="|")
"""


def zeros(num_mebibytes: int, *, is_raw: bool = False) -> bytes:
    stream = zlib.compressobj(1, zlib.DEFLATED, -15 if is_raw else 15)
    block = bytes(2**20)
    return b"".join([*(stream.compress(block) for _ in range(num_mebibytes)), stream.flush()])


def bombs() -> dict[str, tuple[bytes, tuple[str, ...]]]:
    """Name → file, and the outcomes that are right."""
    pixels = b"\0\1\2\0\3\4"
    inflating = zeros(200)
    text = chunk(b"zTXt", b"Comment\0\0" + inflating)
    international = chunk(b"iTXt", b"Comment\0\1\0\0\0" + inflating)
    profile = chunk(b"iCCP", b"Profile\0\0" + inflating)
    tile = zeros(256)
    tiled = {
        **{256: ("I", 16), 257: ("I", 16), 258: ("H", 8), 259: ("H", 8), 262: ("H", 1), 277: ("H", 1)},
        **{322: ("I", 16384), 323: ("I", 16384), 324: ("I", 8), 325: ("I", len(tile))},
    }
    strip = {
        **{256: ("I", 60000), 257: ("I", 60000), 258: ("H", 8), 259: ("H", 8), 262: ("H", 1), 277: ("H", 1)},
        **{273: ("I", 8), 278: ("I", 60000), 279: ("I", len(tile))},
    }
    gif = bytearray(encoded(Image.new("L", (8, 8)), "GIF"))
    frame = gif.index(b"\x2c\0\0\0\0")
    gif[frame + 5 : frame + 9] = (60000).to_bytes(2, "little") * 2
    jpeg = bytearray(encoded(Image.new("L", (8, 8)), "JPEG"))
    header = jpeg.index(b"\xff\xc0")
    jpeg[header + 5 : header + 9] = (60000).to_bytes(2, "big") * 2
    bmp = bytearray(encoded(Image.new("L", (8, 8)), "BMP"))
    bmp[18:26] = (60000).to_bytes(4, "little") * 2
    wide = Image.new("1", (20000, 20000))
    deflated = data_of(dataset_of(np.zeros((64, 64), np.uint16), syntax=DeflatedExplicitVRLittleEndian))
    end_of_meta = 144 + int.from_bytes(deflated[140:144], "little")
    return {
        "text.png": (png(2, 2, pixels, extra=text), ("(2, 2)",)),
        "international.png": (png(2, 2, pixels, extra=international), ("(2, 2)",)),
        "profile.png": (png(2, 2, pixels, extra=profile), ("(2, 2)",)),
        "many_texts.png": (png(2, 2, pixels, extra=text * 20), ("(2, 2)",)),
        "pixels.png": (encoded(wide), (TOO_LARGE,)),
        "long.png": (png(2, 2, pixels + bytes(200 * 2**20)), ("(2, 2)", DAMAGED)),
        "tile.tif": (tiff(tiled, tile), (TOO_LARGE,)),
        "strip.tif": (tiff(strip, tile), (TOO_LARGE,)),
        "packed.tif": (encoded(wide, "TIFF", compression="tiff_lzw"), (TOO_LARGE,)),
        "frame.gif": (bytes(gif), (TOO_LARGE, DAMAGED)),
        "size.jpg": (bytes(jpeg), (TOO_LARGE,)),
        "size.bmp": (bytes(bmp), (TOO_LARGE, UNREAD_VARIANT)),
        "deflated.dcm": (deflated[:end_of_meta] + zeros(250, is_raw=True), (TOO_LARGE,)),
    }


@dataclass(frozen=True)
class Outcome:
    """What became of a bomb, and what should."""

    function: str
    name: str
    growth_mb: int
    outcome: str
    expected: tuple[str, ...]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """Every bomb, in a process of its own."""
    folder, made = tmp_path_factory.mktemp("bombs"), bombs()
    for name, (data, _) in made.items():
        (folder / name).write_bytes(data)
    paths = [str(folder / name) for name in made]
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", _WATCH, *paths], capture_output=True, text=True, cwd=root, timeout=120, check=True
    )
    lines = [line.split("|") for line in done.stdout.splitlines()]
    assert len(lines) == 2 * len(paths)
    return [Outcome(function, name, int(growth), outcome, made[name][1]) for function, name, growth, outcome in lines]


@pytest.mark.slow
def test_no_bomb_fills_the_memory(outcomes: list[Outcome]) -> None:
    assert not [outcome for outcome in outcomes if outcome.growth_mb > _MAX_GROWTH_MB]


def test_every_bomb_is_refused_for_its_size_or_read_without_what_it_carries(outcomes: list[Outcome]) -> None:
    wrong = [
        outcome for outcome in outcomes if outcome.function == "decode" and outcome.outcome not in outcome.expected
    ]
    assert not wrong
