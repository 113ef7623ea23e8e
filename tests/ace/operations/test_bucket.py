"""Deliveries on a real S3 server on loopback: which have come, and fetching one whole, whatever happens on the way."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ace.operations import bucket as module
from ace.operations.bucket import Bucket, Seen, StoredObject
from shards.core.errors import NoSpaceError, SourceError, StoreError
from tests.ace.operations.hospital import SETTLE_S, Hospital
from tests.support.checkout import ROOT
from tests.support.datasets import folder_bytes
from tests.support.servers import PAGE

FILES = {f"{number:03}.png": bytes([number]) * (100 + number) for number in range(PAGE + 5)} | {
    "2026/labels.csv": b"path\n",
    "empty.txt": b"",
}


def fetched(tmp_path: Path, hospital: Hospital, url: str, **bounds: Any) -> dict[str, bytes]:
    outcome = hospital.bucket(**bounds).fetch(url, tmp_path / "images", tmp_path / "fetching")
    found = folder_bytes(tmp_path / "images")
    assert (outcome["objects"], outcome["bytes"]) == (len(found), sum(map(len, found.values())))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
    return found


def test_a_delivery_is_a_prefix_with_the_marker_or_one_that_settled(hospital: Hospital) -> None:
    assert hospital.sent() == {}
    hospital.put("March", {"a/b.png": b"1"})
    hospital.put("April", {"a.png": b"1"}, is_complete=False)
    hospital.put("May", {"": b"", "a/": b""}, is_complete=False)
    hospital.put(".hidden", {"a.png": b"1"})
    hospital.put("March_COMPLETE", {"_COMPLETE.old": b"1"}, is_complete=False)
    hospital.system.call_s3("put_object", Bucket=hospital.name, Key="in/stray.png", Body=b"1")
    found = hospital.sent()
    assert list(found) == ["April", "March", "March_COMPLETE", "May"]
    assert found["March"] == (True, "complete, it has _COMPLETE")
    assert found["May"] == (False, "empty")
    for name in ("April", "March_COMPLETE"):
        assert found[name][0] is False
        assert found[name][1].endswith("of 600 s, without _COMPLETE")
    assert hospital.sent(later_s=590)["April"][0] is False
    assert hospital.sent(later_s=610)["April"][0] is True
    assert hospital.sent(later_s=10_000)["May"][0] is False


@pytest.mark.slow
def test_what_was_taken_is_known_by_its_marker_or_its_content_and_other_content_is_named(hospital: Hospital) -> None:
    hospital.put("March", {"a.png": b"1"})
    (first,) = hospital.bucket().sent({}, SETTLE_S, time.time())
    assert first.earlier is None
    known = {first.url: [Seen(first.mark, first.digest, "clinic-b001")]}
    assert hospital.sent(known) == {}

    time.sleep(1.1)  # the server tells times by the second
    hospital.put("March", {})
    (again,) = hospital.bucket().sent({}, SETTLE_S, time.time())
    assert (again.mark == first.mark, again.digest == first.digest) == (False, True)
    assert hospital.sent(known) == {}, "the marker alone was written again"

    hospital.put("March", {"a.png": b"2"}, is_complete=False)
    assert hospital.sent(known) != {}, "the marker is another one"
    (other,) = hospital.bucket().sent(known, SETTLE_S, time.time())
    assert (other.earlier, other.is_complete) == ("clinic-b001", True)

    loose = hospital.put("April", {"a.png": b"1"}, is_complete=False)
    found = {item.url: item for item in hospital.bucket().sent({}, SETTLE_S, time.time() + SETTLE_S + 9)}
    seen = Seen(found[loose].mark, found[loose].digest, "clinic-b002")
    assert "April" not in hospital.sent({loose: [seen]}, SETTLE_S + 9)
    hospital.put("April", {"b.png": b"1"}, is_complete=False)
    assert "April" in hospital.sent({loose: [seen]})


def test_all_objects_are_fetched_and_nothing_else(hospital: Hospital, tmp_path: Path) -> None:
    url = hospital.put("March", FILES | {"2026/": b"", "": b""})
    hospital.put("March 2", {"other.png": b"1"})
    assert fetched(tmp_path, hospital, url) == FILES


@pytest.mark.slow
def test_a_fetch_goes_on_after_a_failure_with_what_has_come(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = hospital.put("March", {"a.png": bytes(range(100)), "b.png": b"1"})
    monkeypatch.setattr(module, "_CHUNK_BYTES", 30)
    monkeypatch.setattr(module, "_NUM_THREADS", 1)
    asked: list[tuple[int, int]] = []

    def break_after(num_requests: int) -> None:
        original = Bucket._read

        def read(bucket: Bucket, url: str, item: StoredObject, start: int, stop: int) -> bytes:
            if len(asked) == num_requests:
                raise StoreError("the line is dead")
            asked.append((start, stop))
            return original(bucket, url, item, start, stop)

        monkeypatch.setattr(Bucket, "_read", read)

    whole = Bucket._read
    break_after(2)
    with pytest.raises(StoreError, match="the line is dead"):
        hospital.bucket().fetch(url, tmp_path / "images", tmp_path / "fetching")
    assert not (tmp_path / "images").exists()
    monkeypatch.setattr(Bucket, "_read", whole)
    break_after(99)
    hospital.bucket().fetch(url, tmp_path / "images", tmp_path / "fetching")
    assert asked == [(0, 30), (30, 60), (60, 90), (90, 100), (0, 1)]
    assert folder_bytes(tmp_path / "images") == {"a.png": bytes(range(100)), "b.png": b"1"}


@pytest.mark.slow
def test_objects_that_change_meanwhile_are_fetched_again(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, original = hospital.put("March", {"a.png": b"12", "b.png": b"1"}), Bucket._read
    monkeypatch.setattr(module, "_NUM_THREADS", 1)
    with monkeypatch.context() as patch:
        for changed in ("b.png", "a.png"):  # one that is to be fetched yet, and one that was

            def read(bucket: Bucket, url: str, item: StoredObject, start: int, stop: int) -> bytes:
                data = original(bucket, url, item, start, stop)
                hospital.put("March", {changed: b"2"})  # noqa: B023, called at once
                return data

            patch.setattr(Bucket, "_read", read)
            with pytest.raises(StoreError, match=r"the object is another one by now|objects changed while"):
                hospital.bucket().fetch(url, tmp_path / "images", tmp_path / "fetching")
            assert not (tmp_path / "images").exists()
    assert fetched(tmp_path, hospital, url) == {"a.png": b"2", "b.png": b"2"}


@pytest.mark.slow
def test_bytes_that_came_damaged_are_not_taken(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = hospital.put("March", {"a.png": b"12"})
    for came, said in ((b"??", "an object came damaged"), (b"1", "an object is shorter than it was")):
        with monkeypatch.context() as patch:
            patch.setattr(Bucket, "_read", lambda *arguments: came)  # noqa: B023, called at once
            with pytest.raises(StoreError, match=said):
                hospital.bucket().fetch(url, tmp_path / "images", tmp_path / "fetching")
    assert fetched(tmp_path, hospital, url) == {"a.png": b"12"}


@pytest.mark.slow
def test_an_etag_that_is_no_md5_is_believed(hospital: Hospital, tmp_path: Path) -> None:
    """Objects in several parts, and those that are encrypted with a key of the owner's."""
    url, system = hospital.put("March", {}), hospital.system
    place = {"Bucket": hospital.name, "Key": "in/March/a.png"}
    upload = system.call_s3("create_multipart_upload", **place)["UploadId"]
    part = system.call_s3("upload_part", **place, UploadId=upload, PartNumber=1, Body=b"whole")
    parts = {"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]}
    system.call_s3("complete_multipart_upload", **place, UploadId=upload, MultipartUpload=parts)
    bucket, original = hospital.bucket(), hospital.bucket()._system.call_s3
    assert "-" in bucket.objects(url)[0].etag
    assert fetched(tmp_path, hospital, url) == {"a.png": b"whole"}

    def encrypted(request: str, **options: Any) -> Any:
        return original(request, **options) | ({"SSEKMSKeyId": "k"} if request == "head_object" else {})

    bucket._system.call_s3 = encrypted
    (tmp_path / "b.png").write_bytes(b"whole")
    item = StoredObject(name="b.png", num_bytes=5, etag="0" * 32, changed_s=0)
    hospital.put("March", {"b.png": b"other"})
    assert bucket._is_whole(tmp_path / "b.png", url, item)
    bucket._system.call_s3 = original
    assert not bucket._is_whole(tmp_path / "b.png", url, item)


def listed(*names: str) -> list[StoredObject]:
    return [StoredObject(name=name, num_bytes=1, etag="0", changed_s=0) for name in names]


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (("../a.png",), "leads out of its folder"),
        (("a/../../b.png",), "leads out of its folder"),
        (("/etc/a.png",), "leads out of its folder"),
        (("a//b.png",), "leads out of its folder"),
        (("./a.png",), "leads out of its folder"),
        (("a.png/",), "leads out of its folder"),
        (("..\\a.png",), "leads out of its folder"),
        (("a\nb.png",), "has control characters"),
        ((f"{'é' * 128}.png",), "is longer than a file's name may be"),
        (("a", "a/b.png"), "lies below another object"),
        (("a.png", "A.png"), "equals another one but for capitals"),
        (("a/1.png", "A/2.png"), "equals another one but for capitals"),
        (("\u00e9.png", "e\u0301.png"), "equals another one but for capitals"),
    ],
)
def test_names_that_cannot_stand_in_one_folder_are_refused_by_name(names: tuple[str, ...], fault: str) -> None:
    with pytest.raises(SourceError, match=fault) as found:
        Bucket("s3://b/in", 9, 9)._check(listed(*names))
    assert any((name if name.isprintable() else ascii(name)) in str(found.value) for name in names)
    Bucket("s3://b/in", 9, 9)._check(listed("a/b.png", "a/..b.png", "a/b", ".c", "::d?x=1#y%2e"))


def test_a_delivery_that_is_too_large_is_refused_before_it_is_fetched(hospital: Hospital, tmp_path: Path) -> None:
    url = hospital.put("March", {"a.png": b"12", "b.png": b"1"})
    with pytest.raises(SourceError, match=r"more than 1 objects, and may not have \(operations\.deliveries\.max_obj"):
        fetched(tmp_path, hospital, url, max_objects=1)
    with pytest.raises(SourceError, match=r"has 0\.0 kB, and may have 0\.0 kB \(operations\.deliveries\.max_gb\)"):
        fetched(tmp_path, hospital, url, max_bytes=2)
    assert not list(tmp_path.iterdir())
    assert len(fetched(tmp_path, hospital, url, max_objects=2, max_bytes=3)) == 2


@pytest.mark.slow
def test_a_disk_with_too_little_room_is_named_before_anything_is_fetched(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = hospital.put("March", {"a.png": b"12"})
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage._replace(free=1))
    with pytest.raises(NoSpaceError, match="1 objects of the delivery need about"):
        hospital.bucket().fetch(url, tmp_path / "images", tmp_path / "fetching")
    assert not list(tmp_path.rglob("a.png"))


@pytest.mark.slow
def test_names_that_libraries_could_take_for_something_else_are_files(hospital: Hospital, tmp_path: Path) -> None:
    files = {"a::file:b.png": b"1", "a?versionId=1": b"2", "ä #%2e*[x].png": b"3", "a+b c": b"4"}
    assert fetched(tmp_path, hospital, hospital.put("a b", files)) == files


@pytest.mark.slow
def test_a_bucket_that_is_not_there_and_a_server_that_refuses_say_what_to_do(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreError, match=r"s3://no-such-bucket/in: its objects cannot be listed .*there is no such"):
        Bucket("s3://no-such-bucket/in", 9, 9).sent({}, SETTLE_S, 0)
    bucket = hospital.bucket()

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError("Access Denied")

    bucket._system.call_s3 = refuse
    with pytest.raises(StoreError, match=r"cannot be listed \(PermissionError: Access Denied\); the service may not"):
        bucket.sent({}, SETTLE_S, 0)


FETCH = """
import sys
from pathlib import Path
from ace.operations import bucket
bucket._CHUNK_BYTES = 2
bucket.Bucket(sys.argv[1], 100, 1e9).fetch(sys.argv[1] + "/March", Path("images"), Path("fetching"))
"""


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_fetches_is_followed_by_one_that_goes_on(
    hospital: Hospital, tmp_path: Path
) -> None:
    files = {f"{number}.png": bytes(range(200)) for number in range(10)}
    hospital.put("March", files)
    command = [sys.executable, "-c", FETCH, hospital.url]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment) as process:
        deadline = time.monotonic() + 120
        while sum(path.stat().st_size for path in tmp_path.rglob("*.png")) < 100:
            assert process.poll() is None, "the fetch ended before the kill"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
    assert not (tmp_path / "images").exists()
    assert fetched(tmp_path, hospital, f"{hospital.url}/March") == files
