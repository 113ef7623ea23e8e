import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.build.withdraw import WITHOUT, withdraw
from shards.errors import IndexFormatError
from shards.format.layout import sha256_of
from shards.format.tar import TarWriter, copy_members

SAMPLES = st.lists(st.lists(st.binary(max_size=1500), min_size=2, max_size=4), min_size=1, max_size=5)


def write(path: Path, samples: dict[str, list[bytes]]) -> list[dict[str, object]]:
    """A tar of samples whose third member, if there is one, are its landmarks; their rows."""
    rows = []
    with TarWriter(path) as tar:
        for key, members in samples.items():
            spans = [tar.add(f"{key}.{number}", data) for number, data in enumerate(members)]
            rows.append(
                {
                    "row": {
                        "key": key,
                        "start": spans[0].member_start,
                        "num_bytes": spans[-1].member_stop - spans[0].member_start,
                        "meta_bytes": spans[0].num_bytes,
                    },
                    "view": "PA",
                }
            )
    return rows


@given(SAMPLES, st.data())
def test_a_tar_without_some_samples_is_the_tar_that_never_had_them(
    tmp_path_factory: pytest.TempPathFactory, contents: list[list[bytes]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("tars")
    samples = {f"k{number}": members for number, members in enumerate(contents)}
    bad = data.draw(st.sets(st.sampled_from(sorted(samples))))
    summary = {"name": "a.tar", "samples": write(folder / "a.tar", samples)}
    before = (folder / "a.tar").read_bytes()
    found = withdraw(summary, bad, folder)
    expected = write(folder / "expected.tar", {key: samples[key] for key in samples if key not in bad})
    assert (folder / found["path"]).read_bytes() == (folder / "expected.tar").read_bytes()
    assert found["path"] == f"{WITHOUT}/a.tar"
    assert found["samples"] == expected
    assert found["sha256"] == sha256_of(folder / "expected.tar")
    assert found["bytes"] == (folder / "expected.tar").stat().st_size
    assert (folder / "a.tar").read_bytes() == before


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
