import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.build.summary import ListedImage, Quarantined, SampleBytes, Tallied, TarSummary, Written
from shards.build.tar_files import TarFiles
from shards.build.withdraw import withdraw
from shards.core.errors import IndexFormatError
from shards.decode.annotations import Loss
from shards.format.layout import sha256_of
from shards.format.tar import TarWriter, copy_members

TALLIED = Tallied(
    labels={"Edema": -1, "Mass": None},
    foreground=(3, 5, 2),
    num_values=4,
    lost_colour=True,
    losses=(Loss(name="mask lung", reason="outside", num_pixels=3, num_parts=1),),
    areas={"lung": 0.1},
)
SAMPLES = st.lists(st.lists(st.binary(max_size=1500), min_size=2, max_size=4), min_size=1, max_size=5)


def write(path: Path, samples: dict[str, list[bytes]]) -> tuple[Written, ...]:
    """Write a tar of samples with up to four members each, and return what its summary says of them."""
    written = []
    with TarWriter(path) as tar:
        for position, (key, members) in enumerate(samples.items()):
            spans = [tar.add(f"{key}.{number}", data) for number, data in enumerate(members)]
            place = SampleBytes(
                start=spans[0].member_start,
                num_bytes=spans[-1].member_stop - spans[0].member_start,
                meta_bytes=spans[0].num_bytes,
                image_bytes=0,
                half_bytes=0,
                landmarks_bytes=0,
            )
            image = ListedImage(position=position, key=key, display_name=f"{key}.png", patient="p", view="PA")
            written.append(Written(image=image, bytes=place, tallied=TALLIED))
    return tuple(written)


def summary_of(path: Path, samples: tuple[Written, ...], quarantined: tuple[Quarantined, ...] = ()) -> TarSummary:
    return TarSummary(
        name="a.tar",
        split="train",
        num_bytes=path.stat().st_size,
        sha256=sha256_of(path),
        samples=samples,
        quarantined=quarantined,
    )


@given(SAMPLES, st.data())
def test_a_tar_without_some_samples_is_the_tar_that_never_had_them(
    tmp_path_factory: pytest.TempPathFactory, contents: list[list[bytes]], data: st.DataObject
) -> None:
    files = TarFiles(tmp_path_factory.mktemp("tars"), "a.tar")
    samples = {f"k{number}": members for number, members in enumerate(contents)}
    reasons = dict.fromkeys(data.draw(st.sets(st.sampled_from(sorted(samples)))), "blank")
    written = write(files.tar, samples)
    before = files.tar.read_bytes()
    found = withdraw(files, summary_of(files.tar, written), reasons)
    never = files.folder / "never.tar"
    expected = write(never, {key: samples[key] for key in samples if key not in reasons})
    assert files.without_quarantined.tar.read_bytes() == never.read_bytes()
    assert [sample.bytes for sample in found.samples] == [sample.bytes for sample in expected]
    kept, out = ([s.image for s in written if (s.image.key in reasons) == is_out] for is_out in (False, True))
    assert [sample.image for sample in found.samples] == kept
    assert found.quarantined == tuple(Quarantined(image=image, reason="blank") for image in out)
    assert (found.sha256, found.num_bytes) == (sha256_of(never), never.stat().st_size)
    assert files.without_quarantined.read_summary(check_tar=True) == found
    assert files.tar.read_bytes() == before


def test_a_summary_is_read_as_it_was_written(tmp_path: Path) -> None:
    files = TarFiles(tmp_path, "a.tar")
    written = write(files.tar, {"a": [b"x", b"y"], "b": [b"z", b""]})
    summary = summary_of(files.tar, written[:1], (Quarantined(image=written[1].image, reason="blank"),))
    files.write_summary(summary)
    assert files.read_summary(check_tar=True) == summary


def test_a_tar_without_a_summary_of_this_version_is_not_finished(tmp_path: Path) -> None:
    files = TarFiles(tmp_path, "a.tar")
    assert files.read_summary() is None
    files.write_summary(
        TarSummary(name="a.tar", split="train", num_bytes=0, sha256="0" * 64, samples=(), quarantined=())
    )
    assert files.read_summary(check_tar=True) is None, "there is no tar"
    (tmp_path / "a.tar.json").write_text('{"name": "a.tar", "samples": []}')
    assert files.read_summary() is None


def test_a_tar_that_was_changed_is_not_finished(tmp_path: Path) -> None:
    files = TarFiles(tmp_path, "a.tar")
    files.write_summary(summary_of(files.tar, write(files.tar, {"a": [b"x", b"y"]})))
    assert files.read_summary(check_tar=True) is not None
    content = bytearray(files.tar.read_bytes())
    content[600] ^= 1
    files.tar.write_bytes(content)
    assert files.read_summary(check_tar=True) is None


def test_members_copied_in_parts_are_whole(tmp_path: Path) -> None:
    large = bytes(range(256)) * 10_000
    with TarWriter(tmp_path / "a.tar") as tar:
        tar.add("x", b"left out")
        span = tar.add("y", large)
    starts = copy_members(tmp_path / "a.tar", [(span.member_start, span.member_stop)], tmp_path / "b.tar")
    assert starts == [0]
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "b.tar").read_bytes())) as copied:
        assert copied.getnames() == ["y"]
        assert copied.extractfile("y").read() == large  # type: ignore[union-attr]


def test_a_tar_that_ends_early_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"short")
    with pytest.raises(IndexFormatError, match=r"a\.tar: ends before byte 512"):
        copy_members(tmp_path / "a.tar", [(0, 512)], tmp_path / "b.tar")
