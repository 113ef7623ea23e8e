"""The search finds what it is for: planted in each container and encoding, a canary is seen."""

import base64
import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.behaviour.privacy.canaries import AGE, SHORT, Canaries, canaries_below, canaries_in

CANARIES = Canaries()
TEXT = CANARIES.text()


def png(text: str, *, is_packed: bool = False) -> bytes:
    info, file = PngInfo(), io.BytesIO()
    info.add_text("Comment", text, zip=is_packed)
    info.add_itxt("XML", text, zip=is_packed)
    Image.new("L", (4, 4)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def tar(data: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as out:
        member = tarfile.TarInfo("a.png")
        member.size = len(data)
        out.addfile(member, io.BytesIO(data))
    return file.getvalue()


def array(text: str) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([text, "other"]))
    return file.getvalue()


def parquet(text: str) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"name": [text] * 9}), file, compression="zstd")
    return file.getvalue()


@pytest.mark.parametrize("wrap", [bytes, gzip.compress, tar])
@pytest.mark.parametrize(
    "planted",
    [
        TEXT.encode(),
        TEXT.lower().encode(),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
        *(base64.b64encode(b"x" * shift + TEXT.encode()) for shift in range(4)),
        TEXT.encode().hex().encode(),
        TEXT.encode().hex().upper().encode(),
        CANARIES.uid().encode(),
        array(CANARIES.uid()),
        CANARIES.uid().encode().hex().encode(),
        array(TEXT),
        parquet(TEXT),
        png(TEXT),
        png(TEXT, is_packed=True),
        json.dumps({"a": CANARIES.whole()}).encode(),
        json.dumps({"a": float(CANARIES.whole())}).encode(),
        f"{float(CANARIES.whole()):e}".encode(),
        f"born {CANARIES.date()}".encode(),
        b"born 1731-05-21",
        f"at {CANARIES.time()}".encode(),
        f"at {CANARIES.date()}{CANARIES.time()}".encode(),
        f"[{SHORT}]".encode(),
        f"[{SHORT}.0]".encode(),
        f"aged {AGE}".encode(),
    ],
)
def test_a_planted_canary_is_found(planted: bytes, wrap: object) -> None:
    assert canaries_in(wrap(b"before " + planted if not planted.startswith((b"\x89", b"PAR1", b"\x93")) else planted))  # type: ignore[operator]


def test_names_of_files_are_searched_and_other_content_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a" / TEXT).mkdir(parents=True)
    (tmp_path / "a" / TEXT / "b").write_bytes(np.random.default_rng(0).bytes(1_000_000))
    (tmp_path / "c").write_bytes(png("nothing") + b"0.1731970001 17319a7 1731 2026-11-26 abc173197000117")
    assert list(canaries_below(tmp_path)) == [f"a/{TEXT}", f"a/{TEXT}/b"]


def test_canaries_differ() -> None:
    given = [kind() for kind in (CANARIES.text, CANARIES.uid, CANARIES.whole, CANARIES.data) for _ in range(500)]
    assert len(set(given)) == 2000
