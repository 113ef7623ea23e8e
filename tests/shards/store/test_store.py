"""Shard sets on servers: S3 as it is, HTTP as it fails."""

import hashlib
import json
import pickle
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from ssl import CertificateError

import fsspec
import numpy as np
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError
from s3fs.errors import translate_boto_error

from shards.__main__ import build_parser
from shards.build.stage import build_shards
from shards.cli import run_command
from shards.core.errors import ConfigError, IndexFormatError, StoreError
from shards.reading.reader import ShardIndex, ShardReader
from shards.store import location as store
from shards.store import remote
from shards.store.cache import CACHE_VARIABLE, ShardCache
from shards.store.location import LocalStore, RemoteStore, location_of, open_store, parse_location
from shards.store.remote import Remote, Retry
from tests.support.datasets import Here, grid_params, shard_params, write_phantom
from tests.support.servers import PAGE, Fault, FlakyServer, s3_server, upload

QUICK = Retry(attempts=4, first_delay_s=0.01, max_delay_s=0.05, timeout_s=0.5)
TAR = "train-000000.tar"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One shard set that no test changes."""
    root = tmp_path_factory.mktemp("store")
    source = write_phantom(root / "phantom", num_patients=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_SCRATCH", str(root / "scratch"))
        build_shards("phantom-b000", source, grid_params(), shard_params(), root / "set", execution=Here())
    return root / "set"


@pytest.fixture
def flaky(built: Path) -> Iterator[FlakyServer]:
    server = FlakyServer(built.parent)
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 10**9)


@pytest.fixture(scope="module")
def s3(built: Path) -> Iterator[tuple[str, dict]]:
    with s3_server() as options:
        yield upload(built, "hospital", "sets/phantom-b000", options), options


def open_flaky(server: FlakyServer, cache: ShardCache) -> ShardIndex:
    return ShardIndex.open(open_store(f"{server.url}/set", cache=cache, retry=QUICK))


def assert_same_samples(found: ShardIndex, built: Path) -> None:
    expected = ShardIndex.open(built)
    assert found.fingerprint == expected.fingerprint
    assert np.array_equal(found.rows, expected.rows)
    theirs, ours = ShardReader(found), ShardReader(expected)
    for row in range(len(expected.rows)):
        one, other = theirs.read(row), ours.read(row)
        assert (one.key, one.meta, one.landmarks) == (other.key, other.meta, other.landmarks)
        assert np.array_equal(one.image, other.image)
        assert one.masks().keys() == other.masks().keys()


def test_a_set_in_s3_reads_as_the_local_one_and_each_tar_is_fetched_once(
    s3: tuple[str, dict], built: Path, cache: ShardCache
) -> None:
    url, options = s3
    index = ShardIndex.open(open_store(url, storage_options=options, cache=cache))
    assert_same_samples(index, built)
    names = {f"{tar.sha256}.tar" for tar in index.tars}
    assert {path.name for path in cache.root.glob("*.tar")} == names
    before = {path: path.stat().st_ino for path in cache.root.glob("*.tar")}
    assert_same_samples(index, built)
    assert {path: path.stat().st_ino for path in cache.root.glob("*.tar")} == before
    index.verify()


def test_endpoint_and_keys_can_come_from_the_environment_alone(
    s3: tuple[str, dict], built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, options = s3
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["secret"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", options["endpoint_url"])
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "by-variable"))
    index = ShardIndex.open(url)
    assert ShardReader(index).read(0).key == ShardReader(ShardIndex.open(built)).read(0).key
    assert list((tmp_path / "by-variable").glob("*.tar"))


def test_a_missing_tar_and_a_missing_set_in_s3_are_clear_at_once(
    s3: tuple[str, dict], built: Path, cache: ShardCache, tmp_path: Path
) -> None:
    _, options = s3
    partly = Path(shutil.copytree(built, tmp_path / "partly"))
    (partly / TAR).unlink()
    url = upload(partly, "hospital", "partly", options)
    index = ShardIndex.open(open_store(url, storage_options=options, cache=cache))
    with pytest.raises(StoreError, match=rf"^s3://hospital/partly/{TAR}: not there \(404\); check the address"):
        ShardReader(index).read(0)
    for place in ("hospital/nothing", "nobody-has-this-bucket/set"):
        with pytest.raises(StoreError, match=rf"^s3://{place}/index\.json: not there"):
            ShardIndex.open(open_store(f"s3://{place}", storage_options=options, cache=cache))


def test_a_damaged_tar_in_s3_is_named_with_both_sums(
    s3: tuple[str, dict], built: Path, cache: ShardCache, tmp_path: Path
) -> None:
    _, options = s3
    damaged = Path(shutil.copytree(built, tmp_path / "damaged"))
    content = bytearray((damaged / TAR).read_bytes())
    content[700] ^= 1
    (damaged / TAR).write_bytes(content)
    index = ShardIndex.open(
        open_store(upload(damaged, "hospital", "damaged", options), storage_options=options, cache=cache)
    )
    found, expected = hashlib.sha256(content).hexdigest(), index.tars[0].sha256
    with pytest.raises(IndexFormatError, match=rf"damaged/{TAR}: found sha256 {found}, expected {expected}"):
        ShardReader(index).read(0)
    assert not list(cache.root.glob("*.part"))


@pytest.mark.timeout(60)  # a stalled answer lasts until the server ends
@pytest.mark.parametrize("knows_ranges", [True, False])
@pytest.mark.parametrize("fault", ["503", "429", "drop", "end early", "stall", "wrong bytes", "redirect"])
def test_what_can_pass_is_tried_again_and_the_content_is_right(
    fault: Fault, knows_ranges: bool, flaky: FlakyServer, built: Path, cache: ShardCache
) -> None:
    flaky.knows_ranges = knows_ranges
    for path in built.iterdir():
        # Whether an index's bytes are right, nobody but its parser can say; a stalled answer takes its whole timeout.
        is_other = path.name == "index.json" or (fault == "stall" and path.name != TAR)
        flaky.faults[path.name] = ["503"] if is_other else [fault]
    assert_same_samples(open_flaky(flaky, cache), built)
    assert flaky.num_requests(TAR) == 2


def test_an_answer_that_is_compressed_against_the_request_is_read(
    flaky: FlakyServer, built: Path, cache: ShardCache
) -> None:
    flaky.always = {path.name: "gzip" for path in built.iterdir()}
    assert_same_samples(open_flaky(flaky, cache), built)
    assert flaky.num_requests(TAR) == 1


@pytest.mark.timeout(60)
def test_an_answer_without_end_is_read_as_far_as_the_index_says(
    flaky: FlakyServer, built: Path, cache: ShardCache
) -> None:
    flaky.always = {path.name: "endless" for path in built.iterdir() if path.name != "index.json"}
    assert_same_samples(open_flaky(flaky, cache), built)


@pytest.mark.timeout(60)
def test_an_index_without_end_is_refused(
    flaky: FlakyServer, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_INDEX_BYTES", 10**6)
    flaky.always["index.json"] = "endless"
    with pytest.raises(StoreError, match=r"/set/index\.json: more than 1000000 bytes; check the address"):
        open_flaky(flaky, cache)
    assert flaky.num_requests("index.json") == 1


def test_a_large_index_in_s3_is_refused_and_one_of_any_other_size_is_read(
    s3: tuple[str, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, options = s3
    monkeypatch.setattr(remote, "_RANGE_BYTES", 1000)
    files = Remote("s3://hospital/sizes", options, QUICK)
    system = fsspec.filesystem("s3", **options)
    for size in (1, 999, 1001, 2500):
        content = np.random.default_rng(size).bytes(size)
        system.pipe_file(f"hospital/sizes/{size}", content)
        assert files.read(str(size), 2500) == content
    with pytest.raises(StoreError, match="sizes/2500: more than 2499 bytes"):
        files.read("2500", 2499)


def test_a_part_that_is_whole_is_checked_without_asking_the_server(
    flaky: FlakyServer, built: Path, cache: ShardCache
) -> None:
    index = open_flaky(flaky, cache)
    tar = index.tars[0]
    (cache.root / f"{tar.sha256}.{tar.num_bytes}.part").write_bytes((built / TAR).read_bytes())
    ShardReader(index).read(0)
    assert flaky.num_requests(TAR) == 0


def test_a_tar_that_has_become_shorter_on_the_server_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"short")
    (tmp_path / "part").write_bytes(bytes(100))
    server = FlakyServer(tmp_path)
    try:
        with (tmp_path / "part").open("ab") as file:
            append = partial(Remote(server.url, {}, QUICK).append, "a.tar", file, 200, lambda _: None)
            with pytest.raises(StoreError, match=r"a\.tar: shorter than expected \(416\)"):
                append()
    finally:
        server.close()


def test_a_tar_that_changes_on_the_server_is_told_once_it_is_asked_for_and_what_came_before_stays(
    built: Path, tmp_path: Path, cache: ShardCache
) -> None:
    served = Path(shutil.copytree(built, tmp_path / "served" / "set"))
    server = FlakyServer(served.parent)
    try:
        index = open_flaky(server, cache)
        reader = ShardReader(index)
        before = reader.read(0).encoded
        for path in served.glob("*.tar"):
            path.write_bytes(bytes(path.stat().st_size))
        assert reader.read(0).encoded == before
        with pytest.raises(IndexFormatError, match="or of another build than its index: upload the shard set again"):
            reader.read(len(index.rows) - 1)
    finally:
        server.close()


def test_a_set_among_more_objects_than_a_page_of_a_listing_is_read_without_listing_them(
    s3: tuple[str, dict], built: Path, cache: ShardCache
) -> None:
    _, options = s3
    url = upload(built, "crowded", "set", options)
    system = fsspec.filesystem("s3", **options)
    system.pipe({f"crowded/set/a-{number:04d}": b"" for number in range(2 * PAGE)})
    assert_same_samples(ShardIndex.open(open_store(url, storage_options=options, cache=cache)), built)


def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    # The fifth drop still sends 1 MB: a client that is behind may lose the last few hundred kB of what was sent.
    content = np.random.default_rng(0).bytes(2**25)
    (tmp_path / "large.tar").write_bytes(content)
    server = FlakyServer(tmp_path)
    server.faults["large.tar"] = ["drop"] * 5  # more than QUICK's attempts, but each gains something
    told: list[int] = []
    try:
        with (tmp_path / "part").open("ab") as file:
            Remote(server.url, {}, QUICK).append("large.tar", file, len(content), told.append)
    finally:
        server.close()
    assert (tmp_path / "part").read_bytes() == content
    assert sum(told) == len(content)
    starts = [int(wanted.removeprefix("bytes=").rstrip("-")) for _, wanted in server.requests if wanted]
    assert len(starts) == 5
    assert all(0 < first < second for first, second in pairwise(starts))


def test_a_small_file_whose_answer_broke_is_read_from_its_beginning(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(2**21)
    (tmp_path / "index.json").write_bytes(content)
    server = FlakyServer(tmp_path)
    server.faults["index.json"] = ["drop"]
    try:
        assert Remote(server.url, {}, QUICK).read("index.json", 2 * len(content)) == content
    finally:
        server.close()


def test_an_error_that_stays_is_told_with_its_number_of_tries(flaky: FlakyServer, cache: ShardCache) -> None:
    index = open_flaky(flaky, cache)
    flaky.always[TAR] = "503"
    with pytest.raises(StoreError, match=rf"/set/{TAR}: the server answers 503; tried 4 times .*run the same command"):
        ShardReader(index).read(0)
    assert flaky.num_requests(TAR) == 4
    flaky.always.clear()
    ShardReader(index).read(0)


def test_wrong_bytes_that_stay_name_the_tar_and_both_sums(flaky: FlakyServer, built: Path, cache: ShardCache) -> None:
    index = open_flaky(flaky, cache)
    flaky.always[TAR] = "wrong bytes"
    found = hashlib.sha256(bytes(byte ^ 1 for byte in (built / TAR).read_bytes())).hexdigest()
    with pytest.raises(IndexFormatError, match=rf"/set/{TAR}: found sha256 {found}, expected {index.tars[0].sha256}"):
        ShardReader(index).read(0)
    assert 2 <= flaky.num_requests(TAR) <= 3
    assert not cache.path(index.tars[0]).exists()


@pytest.mark.parametrize(("fault", "message"), [("403", r"access refused \(403\); give credentials"), ("404", r"404")])
def test_refusals_are_told_at_once(fault: str, message: str, flaky: FlakyServer, cache: ShardCache) -> None:
    index = open_flaky(flaky, cache)
    if fault == "403":
        flaky.always[TAR] = "403"
    else:
        store = open_store(f"{flaky.url}/elsewhere", cache=cache, retry=QUICK)
        index = ShardIndex(store=store, description=index.description, rows=index.rows, fingerprint="")
    with pytest.raises(StoreError, match=message):
        ShardReader(index).read(0)
    assert flaky.num_requests(TAR) == 1


def test_nobody_at_the_address_is_told_after_the_tries(flaky: FlakyServer, cache: ShardCache) -> None:
    url = flaky.url
    flaky.close()
    with pytest.raises(StoreError, match=r"index\.json: .*tried 4 times"):
        ShardIndex.open(open_store(f"{url}/set", cache=cache, retry=QUICK))


@pytest.mark.parametrize(("fault", "code"), [("503", 1), ("403", 2)])
def test_a_server_that_is_away_is_no_mistake_of_the_user(
    fault: Fault, code: int, flaky: FlakyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    flaky.always["index.json"] = fault
    assert run_command(build_parser(), ["stats", f"{flaky.url}/set"]) == code


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_the_wait_that_a_server_asks_for_is_kept(form: str, flaky: FlakyServer, cache: ShardCache) -> None:
    index = open_flaky(flaky, cache)
    flaky.faults[TAR] = ["429"]
    # Dates are whole seconds.
    flaky.retry_after = "1" if form == "seconds" else format_datetime(datetime.now(UTC) + timedelta(seconds=2), True)
    started = time.monotonic()
    ShardReader(index).read(0)
    assert time.monotonic() - started >= 0.9


def test_delays_double_up_to_a_bound_and_are_jittered() -> None:
    retry = Retry(attempts=9, first_delay_s=1.0, max_delay_s=10.0)
    for failures, longest in enumerate([1, 2, 4, 8, 10, 10], start=1):
        delays = [retry.delay_s(failures, 0.0) for _ in range(50)]
        assert longest / 2 <= min(delays) < max(delays) <= longest
        assert len(set(delays)) > 10
    assert retry.delay_s(1, 33.0) == 33.0


def of_s3(code: str, status: int, **headers: str) -> OSError:
    """What s3fs makes of an answer."""
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    cause = ClientError({"Error": {"Code": code}, "ResponseMetadata": metadata}, "GetObject")
    error = translate_boto_error(cause)
    assert isinstance(error, OSError)
    return error


@pytest.mark.parametrize(
    "error",
    [
        of_s3("SlowDown", 503),
        of_s3("InternalError", 500),
        of_s3("RequestTimeout", 408),
        EndpointConnectionError(endpoint_url="http://127.0.0.1"),
        ReadTimeoutError(endpoint_url="http://127.0.0.1"),
        TimeoutError(),
        ConnectionResetError(),
    ],
    ids=repr,
)
def test_errors_that_can_pass_are_told_from_their_libraries(error: Exception) -> None:
    assert isinstance(remote._judged(error, "s3://b/a"), remote._PassingError)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (of_s3("AccessDenied", 403), "access refused"),
        (of_s3("NoSuchKey", 404), "not there"),
        (of_s3("InvalidRequest", 400), "the server answers 400"),
        (NoCredentialsError(), "Unable to locate credentials"),
        (CertificateError("self-signed"), "self-signed"),
        (ValueError("Protocol not known"), "Protocol not known"),
    ],
    ids=repr,
)
def test_errors_that_stay_are_told_at_once(error: Exception, message: str) -> None:
    judged = remote._judged(error, "s3://b/a")
    assert isinstance(judged, StoreError)
    assert message in str(judged)


def test_the_wait_that_s3_asks_for_is_read() -> None:
    judged = remote._judged(of_s3("SlowDown", 503, **{"retry-after": "7"}), "s3://b/a")
    assert isinstance(judged, remote._PassingError)
    assert judged.retry_after_s == 7


def test_a_date_that_is_none_asks_for_nothing() -> None:
    assert [remote._retry_after_s({"retry-after": value}) for value in ("soon", "-3", "", "9999999")] == [0, 0, 0, 600]


def test_a_set_on_a_server_and_its_index_can_be_pickled_without_its_rows(
    flaky: FlakyServer, built: Path, cache: ShardCache
) -> None:
    index = open_flaky(flaky, cache)
    data = pickle.dumps(index)
    again = pickle.loads(data)
    assert isinstance(again.rows, np.memmap)
    assert_same_samples(again, built)
    local = ShardIndex.open(built)
    assert index.rows[0].tobytes() not in data
    assert np.array_equal(pickle.loads(pickle.dumps(local)).rows, local.rows)


def test_rows_that_were_evicted_are_fetched_again_in_another_process(
    flaky: FlakyServer, built: Path, cache: ShardCache
) -> None:
    data = pickle.dumps(open_flaky(flaky, cache))
    for path in cache.root.glob("*.npy"):
        path.unlink()
    assert_same_samples(pickle.loads(data), built)


def test_a_changed_file_of_the_cache_is_seen_by_its_size_and_by_verify(flaky: FlakyServer, cache: ShardCache) -> None:
    index = open_flaky(flaky, cache)
    ShardReader(index).read(0)
    path = index.store.path(index.tars[0])
    path.write_bytes(path.read_bytes()[:-512])
    ShardReader(index).read(0)
    assert flaky.num_requests(TAR) == 2
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    with pytest.raises(IndexFormatError, match=rf"damaged tars: {TAR}; remove {path}"):
        index.verify()


def test_rows_that_are_not_those_of_the_index_are_refused(flaky: FlakyServer, cache: ShardCache) -> None:
    flaky.always["samples.npy"] = "wrong bytes"
    with pytest.raises(IndexFormatError, match=r"/set/samples\.npy: found sha256"):
        open_flaky(flaky, cache)


def test_half_an_index_is_no_index(built: Path, tmp_path: Path, cache: ShardCache) -> None:
    shutil.copytree(built, tmp_path / "set")
    text = (built / "index.json").read_text()
    (tmp_path / "set" / "index.json").write_text(text[: len(text) // 2])
    server = FlakyServer(tmp_path)
    try:
        with pytest.raises(IndexFormatError, match="is missing or no JSON"):
            open_flaky(server, cache)
    finally:
        server.close()


def test_rows_and_tars_that_do_not_add_up_are_refused(built: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(built, tmp_path / "set"))
    values = json.loads((copy / "index.json").read_text())
    values["shards"].pop()
    (copy / "index.json").write_text(json.dumps(values))
    with pytest.raises(IndexFormatError, match=r"\d+ rows, and its tars hold \d+ samples"):
        ShardIndex.open(copy)


@pytest.mark.parametrize(
    "location", ["https://user:secret@host/set", "https://host/set?X-Signature=secret", "s3://bucket/set#secret"]
)
def test_an_address_with_secrets_is_refused_without_repeating_them(location: str) -> None:
    with pytest.raises(ConfigError, match="expected SCHEME://HOST/PATH alone") as refused:
        open_store(location)
    assert "secret" not in str(refused.value)


def test_an_unknown_kind_of_store_is_told(cache: ShardCache) -> None:
    with pytest.raises(StoreError, match=r"gopher://host/set/index\.json: .*gopher"):
        ShardIndex.open(open_store("gopher://host/set", cache=cache))


def test_options_are_not_shown(cache: ShardCache) -> None:
    assert "do-not-show" not in repr(
        open_store("s3://bucket/set", storage_options={"secret": "do-not-show"}, cache=cache)
    )


def test_locations_are_read_from_a_command_line_and_joined() -> None:
    assert parse_location("data/shards") == Path("data/shards")
    assert parse_location("s3://b/sets") == "s3://b/sets"
    assert location_of(Path("data/shards"), "a-b000") == Path("data/shards/a-b000")
    assert location_of("s3://b/sets/", "a-b000") == "s3://b/sets/a-b000"
    assert isinstance(open_store("data/shards/a-b000"), LocalStore)
    assert isinstance(open_store("https://host/a-b000/"), RemoteStore)
    assert open_store("https://host/a-b000/").location == "https://host/a-b000"


def test_only_a_local_set_has_a_folder(flaky: FlakyServer, built: Path, cache: ShardCache) -> None:
    assert ShardIndex.open(built).root == built
    with pytest.raises(ConfigError, match="lies on a server"):
        _ = open_flaky(flaky, cache).root
