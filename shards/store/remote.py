"""Bytes of files on a server, through fsspec: errors that can pass are retried, all others are clear at once.

Credentials and endpoints are fsspec's own affair (its configuration, its environment variables, the options given);
nothing here looks for any.
"""

import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from random import SystemRandom
from ssl import CertificateError
from typing import Any, BinaryIO

import fsspec
from tqdm import tqdm

from shards.core.errors import ConfigError, OutOfReachError, StoreError

_CHUNK_BYTES = 2**20
_RANGE_BYTES = 2**24
_PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
_MAX_RETRY_AFTER_S = 600.0
_TOLD_FROM_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Retry:
    """The patience with errors that can pass.

    Attributes:
        attempts: Number of attempts in a row without a byte gained.
        first_delay_s: Seconds before the second attempt; they double with each.
        max_delay_s: Longest delay, in seconds, unless the server asks for more.
        timeout_s: Longest silence of a server, in seconds.
    """

    attempts: int = 10
    first_delay_s: float = 0.5
    max_delay_s: float = 60.0
    timeout_s: float = 60.0

    def delay_s(self, failures: int, wanted_s: float) -> float:
        """Return the seconds to wait after so many failures: jittered, so that many readers do not come back at once.

        Args:
            failures: Number of failures in a row, at least 1.
            wanted_s: Seconds that the server asked for; the delay is never less.
        """
        longest = min(self.max_delay_s, self.first_delay_s * 2 ** (failures - 1))
        return max(wanted_s, SystemRandom().uniform(longest / 2, longest))


PATIENT = Retry()
"""About three minutes."""


class _PassingError(Exception):
    """An error that can pass: what was found, and how long the server asks to wait."""

    def __init__(self, found: str, retry_after_s: float = 0.0) -> None:
        super().__init__(found)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Remote:
    """A folder on a server.

    Attributes:
        location: URL of the folder, without a slash at the end.
        options: fsspec's `storage_options`; never shown.
        retry: Patience with a server.
    """

    location: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    retry: Retry = PATIENT

    def url(self, name: str) -> str:
        """Return the URL of a file in the folder."""
        return f"{self.location}/{name}"

    def read(self, name: str, max_bytes: int) -> bytes:
        """Read a small file, whole.

        Raises:
            StoreError: it is not there, may not be read, is larger, or the server does not answer.
        """
        content = bytearray()

        def attempt() -> None:
            content.clear()
            with closing(self._stream(name, 0, max_bytes + 1)) as chunks:
                for chunk in chunks:
                    content.extend(chunk)
                    if len(content) > max_bytes:
                        raise StoreError(f"{self.url(name)}: more than {max_bytes} bytes; check the address")

        self._insist(name, attempt, lambda: 0)
        return bytes(content)

    def append(self, name: str, file: BinaryIO, num_bytes: int, on_bytes: Callable[[int], object]) -> None:
        """Add to `file` what it lacks of the remote file's `num_bytes`; what has come stays through every error.

        Args:
            name: Name of the remote file.
            file: Holds its first bytes already; positioned at their end.
            num_bytes: Size of the remote file.
            on_bytes: Told of every chunk's length.

        Raises:
            StoreError: as in `read`, or the remote file ends too early.
            OSError: the file cannot be written.
        """

        def attempt() -> None:
            with closing(self._stream(name, file.tell(), num_bytes)) as chunks:
                # A server may send more than that, without end.
                while file.tell() < num_bytes and (chunk := next(chunks, None)):
                    wanted = chunk[: num_bytes - file.tell()]
                    file.write(wanted)
                    on_bytes(len(wanted))
            if file.tell() < num_bytes:
                raise _PassingError(f"it ends at byte {file.tell()}, expected {num_bytes}")

        self._insist(name, attempt, file.tell)

    def _insist(self, name: str, attempt: Callable[[], None], gained: Callable[[], int]) -> None:
        failures, before, started = 0, gained(), time.monotonic()
        while True:
            try:
                return attempt()
            except _PassingError as error:
                failures, before = (1, gained()) if gained() > before else (failures + 1, before)
                if failures >= self.retry.attempts:
                    raise OutOfReachError(
                        f"{self.url(name)}: {error}; tried {failures} times in {time.monotonic() - started:.0f} s. The "
                        "server is overloaded or out of reach: run the same command again, what has come is kept"
                    ) from None
                delay_s = self.retry.delay_s(failures, error.retry_after_s)
                if delay_s >= _TOLD_FROM_S:
                    again = f"attempt {failures + 1} of {self.retry.attempts} in {delay_s:.0f} s"
                    tqdm.write(f"{self.url(name)}: {error}; {again}", file=sys.stderr)
                time.sleep(delay_s)

    def _stream(self, name: str, start: int, stop: int) -> Generator[bytes, None, None]:
        """Yield chunks of the bytes from `start` on; to the end, or at least to `stop`.

        Raises:
            _PassingError: as soon as something fails that can pass.
            StoreError: for all else.
        """
        try:
            system, path = fsspec.url_to_fs(self.url(name), **self.options)
            is_http = "http" in (system.protocol if isinstance(system.protocol, tuple) else (system.protocol,))
            stream = self._http_stream(system, path, start) if is_http else _range_stream(system, path, start, stop)
            yield from stream
        except (StoreError, _PassingError):
            raise
        except ImportError as error:
            scheme = self.location.partition("://")[0]
            raise ConfigError(
                f"{self.location}: {error}; for s3: pip install 'ace-pretraining[s3]', for {scheme}: see fsspec"
            ) from None
        except Exception as error:
            raise _judged(error, self.url(name)) from None

    def _http_stream(self, system: Any, url: str, start: int) -> Iterator[bytes]:
        from aiohttp import ClientTimeout

        wait = ClientTimeout(total=None, sock_connect=self.retry.timeout_s, sock_read=self.retry.timeout_s)
        # A compressed answer would be other bytes than the file's.
        headers = {**system.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
        headers |= {"Range": f"bytes={start}-"} if start else {}
        # Any size: without one, fsspec asks the server first.
        with system.open(url, "rb", block_size=0, size=1, headers=headers, timeout=wait) as file:
            num_known = 0 if file.r.status == HTTPStatus.PARTIAL_CONTENT else start  # the server knows no ranges
            while chunk := file.read(_CHUNK_BYTES):
                fresh = chunk[num_known:]
                num_known -= len(chunk) - len(fresh)
                if fresh:
                    yield fresh


def _range_stream(system: Any, path: str, start: int, stop: int) -> Iterator[bytes]:
    while start < stop:
        end = min(start + _RANGE_BYTES, stop)
        chunk = system.cat_file(path, start=start, end=end)
        if chunk:
            yield chunk
        if len(chunk) < end - start:  # the file's end: stores refuse a range behind it
            return
        start = end


def _judged(error: Exception, url: str) -> Exception:
    """Translate an error of fsspec and the libraries below it into one of ours."""
    status, headers = _answer(error)
    if isinstance(error, FileNotFoundError) or status == HTTPStatus.NOT_FOUND:
        return StoreError(f"{url}: not there (404); check the address, and that the whole shard set was uploaded")
    if isinstance(error, PermissionError) or status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return StoreError(
            f"{url}: access refused ({status or HTTPStatus.FORBIDDEN:d}); give credentials in the store's own way (S3: "
            "environment, profile or role; others: fsspec's configuration), or ask for the right to read it"
        )
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return StoreError(f"{url}: shorter than expected (416); upload the whole shard set again")
    found = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if status is not None:
        can_pass = status in _PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR
        found = f"the server answers {status}"
    else:
        can_pass = isinstance(error, OSError | EOFError) or _is_connection_error(error)
        can_pass = can_pass and not isinstance(error, CertificateError)
    if can_pass:
        return _PassingError(found, _retry_after_s(headers))
    return StoreError(f"{url}: {found}; check the address and fsspec's configuration for it")


def _answer(error: Exception) -> tuple[int | None, Mapping[str, str]]:
    """Return status and headers of the server's answer, if there was one.

    aiohttp's errors have them; botocore's have them in a cause below the OSError that s3fs makes of them.
    """
    status = getattr(error, "status", None)
    if isinstance(status, int) and status:
        return status, getattr(error, "headers", None) or {}
    for one in (error, error.__cause__):
        about = getattr(one, "response", None)
        if isinstance(about, Mapping) and "ResponseMetadata" in about:
            metadata = about["ResponseMetadata"]
            return metadata.get("HTTPStatusCode"), metadata.get("HTTPHeaders", {})
    return None, {}


def _is_connection_error(error: Exception) -> bool:
    """Tell whether a library's own error speaks of the way to the server rather than of the request."""
    package = type(error).__module__.partition(".")[0]
    if package == "aiohttp":
        from aiohttp import ClientError, InvalidURL

        return isinstance(error, ClientError) and not isinstance(error, InvalidURL)
    if package in ("botocore", "aiobotocore"):
        from botocore import exceptions, parsers

        # SSLError is a ConnectionError there.
        on_the_way = exceptions.ConnectionError | exceptions.HTTPClientError | exceptions.IncompleteReadError
        return isinstance(error, on_the_way | parsers.ResponseParserError) and not isinstance(
            error, exceptions.SSLError
        )
    return False


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """Read the header Retry-After, seconds or a date, as seconds."""
    value = next((value for name, value in headers.items() if name.lower() == "retry-after"), "0")
    try:
        wanted = (
            float(value) if value.isdecimal() else (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        )
    except (TypeError, ValueError):  # no date, or one without a zone
        return 0.0
    return min(max(wanted, 0.0), _MAX_RETRY_AFTER_S)
