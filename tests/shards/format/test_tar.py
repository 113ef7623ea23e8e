import hashlib
import io
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.format.tar import BLOCK, Span, TarWriter, read_header, walk_members

names = st.builds("{}.{}".format, st.text("aZ0_-", min_size=1, max_size=60), st.sampled_from(["json", "mask.a.png"]))
contents_of_tars = st.dictionaries(names, st.binary(max_size=1500), min_size=1, max_size=6)


def write(path: Path, contents: dict[str, bytes]) -> dict[str, Span]:
    with TarWriter(path) as tar:
        return {name: tar.add(name, data) for name, data in contents.items()}


@given(contents_of_tars)
def test_spans_are_where_the_data_lies(contents: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        spans = write(path, contents)
        archive = path.read_bytes()
    end = 0
    for name, data in contents.items():
        span = spans[name]
        assert archive[span.start : span.start + span.num_bytes] == data
        assert span.member_start == end
        end = span.member_stop


@given(contents_of_tars, st.data())
def test_a_run_cut_at_member_boundaries_gives_its_members(contents: dict[str, bytes], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(contents) - 1))
    last = data.draw(st.integers(first, len(contents) - 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        spans = list(write(path, contents).values())
        run = path.read_bytes()[spans[first].member_start : spans[last].member_stop]
    assert list(walk_members(run)) == list(contents.items())[first : last + 1]


def test_the_archive_is_plain_ustar_without_owner_time_or_place(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {"k.json": b"{}", "k.png": bytes(700)})
    with tarfile.open(tmp_path / "a.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode) == (
                (0, 0, 0, "root", "root", 0o644)
            )
            assert not member.pax_headers
    assert (tmp_path / "a.tar").stat().st_size % BLOCK == 0


def test_the_bytes_never_change(tmp_path: Path) -> None:
    # Shards of earlier versions are compared by hash.
    write(tmp_path / "a.tar", {"k.json": b"{}", "k.png": bytes(700)})
    assert hashlib.sha256((tmp_path / "a.tar").read_bytes()).hexdigest() == (
        "0cb596b26362afb0410d637181a29076cbe14b62a9034bb94e447e2009107739"
    )


@given(contents_of_tars)
def test_the_block_before_the_data_says_whose_it_is_and_other_blocks_say_nothing(contents: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        spans = write(path, contents)
        archive = path.read_bytes()
    for name, span in spans.items():
        assert read_header(archive[span.member_start : span.start]) == (name, len(contents[name]))
    end = max(span.member_stop for span in spans.values())
    assert read_header(archive[end : end + BLOCK]) == ("", 0)


@given(st.binary(min_size=BLOCK, max_size=BLOCK))
def test_any_bytes_can_be_asked_for_a_header(block: bytes) -> None:
    assert read_header(block)[1] >= 0
    assert read_header(block[:257] + b"ustar" + block[262:])[1] >= 0


@given(contents_of_tars)
def test_the_bytes_are_those_of_tarfile(contents: dict[str, bytes]) -> None:
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.uname, member.gname = len(data), 0o644, "root", "root"
            tar.addfile(member, io.BytesIO(data))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        with TarWriter(path) as writer:
            for name, data in contents.items():
                writer.add(name, data)
        assert path.read_bytes() == expected.getvalue()
    assert writer.sha256 == hashlib.sha256(expected.getvalue()).hexdigest()
    assert writer.num_bytes == len(expected.getvalue())


def test_a_name_longer_than_a_header_is_refused(tmp_path: Path) -> None:
    with TarWriter(tmp_path / "a.tar") as tar:
        tar.add("a" * 100, b"")
        with pytest.raises(ValueError, match="101 bytes"):
            tar.add("a" * 101, b"")
