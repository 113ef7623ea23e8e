"""A decoder that ends its process costs one image."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards.core.errors import DecoderError
from shards.decode import UnreadableImageError, decode, isolated
from shards.decode.reasons import DAMAGED
from tests.shards.decode.dicom_files import RAMP, compressed, data_of, dataset_of
from tests.shards.decode.files import decoded, reason_for
from tests.shards.decode.test_compressed import NOISE, stream_of, with_stream


@pytest.fixture
def image(tmp_path: Path) -> bytes:
    return compressed(data_of(dataset_of(NOISE, bits=16)), "JPEG2000Lossless", tmp_path)


def with_deadly_stream(image: bytes) -> bytes:
    """Three components transformed in a picture of one: GDCM 3.2 throws through its caller, which ends the process."""
    stream = stream_of(image)
    place = stream.index(b"\xff\x52") + 8
    return with_stream(image, stream[:place] + b"\1" + stream[place + 1 :])


def test_the_next_image_is_decoded_after_one_that_ended_the_decoder(image: bytes) -> None:
    expected = decoded(image).pixels
    for _ in range(2):
        child = isolated._children[0].process
        assert reason_for(with_deadly_stream(image)) == DAMAGED
        assert child.wait(timeout=10) != 0
        assert np.array_equal(decoded(image).pixels, expected)


def test_the_same_process_decodes_one_image_after_another_and_is_replaced_when_killed(image: bytes) -> None:
    expected = decoded(image).pixels
    first = isolated._children[0].process
    assert np.array_equal(decoded(image).pixels, expected)
    assert isolated._children[0].process is first
    first.kill()
    first.wait()
    assert np.array_equal(decoded(image).pixels, expected)
    assert isolated._children[0].process is not first


def test_a_decoder_that_hangs_is_ended(image: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded(image)
    child = isolated._children[0]
    monkeypatch.setattr(isolated, "_TIMEOUT_S", 0.3)
    os.kill(child.process.pid, 19)  # SIGSTOP
    assert reason_for(image) == DAMAGED
    assert child.process.poll() is not None
    monkeypatch.undo()
    decoded(image)


def test_a_decoder_that_cannot_start_is_no_fault_of_the_image(image: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    isolated._end_child()
    monkeypatch.setattr(isolated, "_COMMAND", "raise SystemExit(1)")
    with pytest.raises(DecoderError, match="ended before its first image; run"):
        decode(image, max_pixels=1e6)


def test_what_the_libraries_print_stays_with_them(image: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    reason_for(with_deadly_stream(image))
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_no_decoder_outlives_its_process(image: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    path.write_bytes(image)
    script = (
        "import sys; from pathlib import Path; from shards.decode import isolated, decode\n"
        "decode(Path(sys.argv[1]).read_bytes(), max_pixels=1e6)\n"
        "print(isolated._children[0].process.pid)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(path)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_pixels_that_nothing_compressed_need_no_other_process() -> None:
    isolated._end_child()
    decoded(data_of(dataset_of(RAMP)))
    assert not isolated._children


def test_an_error_of_the_decoder_is_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreadableImageError, match=DAMAGED):
        isolated.decode_isolated("1.2.840.10008.1.2.4.70", b"none", {})
