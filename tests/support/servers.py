"""Servers on loopback that hold shard sets: a real S3 one in its own process, and an HTTP one that fails on demand."""

import gzip
import os
import re
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import fsspec

Fault = Literal["503", "429", "403", "drop", "end early", "stall", "wrong bytes", "gzip", "redirect", "endless"]
KEYS = {"key": "test", "secret": "test"}
PAGE = 20
"""Objects that the S3 server lists in one answer; others list a thousand."""


@contextmanager
def s3_server() -> Iterator[dict]:
    """Run a moto server at a free port of loopback; fsspec's `storage_options` for it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        env={**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE)},
        stderr=subprocess.PIPE,
        text=True,
    )
    # A server that says nothing is ended, which ends the loop below too.
    watch = threading.Timer(60, process.kill)
    watch.start()
    assert process.stderr is not None
    # Nobody reads its log once it has started: a full pipe would stop it.
    drain = threading.Thread(target=process.stderr.read, daemon=True)
    try:
        found = (re.search(r"Running on (http://127\.0\.0\.1:\d+)", line) for line in process.stderr)
        endpoint = next((match[1] for match in found if match), None)
        assert endpoint is not None, "the S3 server did not start"
        watch.cancel()
        drain.start()
        yield {**KEYS, "endpoint_url": endpoint}
    finally:
        watch.cancel()
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        process.kill()
        process.wait()
        if drain.is_alive():
            drain.join(timeout=10)
        process.stderr.close()


def upload(folder: Path, bucket: str, prefix: str, options: dict) -> str:
    """Put a folder's files into a new bucket; the URL of the folder."""
    system = fsspec.filesystem("s3", **options)
    if not system.exists(bucket):
        system.mkdir(bucket)
    for path in folder.iterdir():
        system.pipe_file(f"{bucket}/{prefix}/{path.name}", path.read_bytes())
    return f"s3://{bucket}/{prefix}"


class FlakyServer:
    """Files of a folder over HTTP.

    Attributes:
        faults: What goes wrong with the next requests for a file, by its name; then all is well again.
        always: What goes wrong with every request for a file.
        knows_ranges: Whether it honours Range.
        pause_s: Before every 64 kB of a body.
        requests: (name, Range or None) of all so far.
        retry_after: Of its answers 429 and 503.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.always: dict[str, Fault] = {}
        self.knows_ranges = True
        self.pause_s = 0.0
        self.requests: list[tuple[str, str | None]] = []
        self.retry_after: str | None = None
        self.is_ending = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def num_requests(self, name: str) -> int:
        return sum(asked == name for asked, _ in self.requests)

    def close(self) -> None:
        self.is_ending.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(server) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with suppress(BrokenPipeError, ConnectionResetError):
                    server.answer(self)

            def log_message(self, *args) -> None:
                pass

        return Handler

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.rpartition("/")[2]
        wanted = request.headers.get("Range")
        self.requests.append((name, wanted))
        fault = self.faults[name].pop(0) if self.faults[name] else self.always.get(name)
        path = self.root / request.path.lstrip("/")
        if fault in ("503", "429", "403") or not path.is_file():
            return self._refuse(request, int(fault) if fault in ("503", "429", "403") else 404)
        if fault == "redirect":
            return self._refuse(request, 302)
        body, status, start = path.read_bytes(), 200, 0
        total = len(body)
        if wanted is not None and self.knows_ranges:
            start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
            if start >= total:
                return self._refuse(request, 416)
            body = body[start:]
        if fault == "wrong bytes":
            body = bytes(byte ^ 1 for byte in body)
        if fault == "end early":
            body = body[: len(body) // 2]  # and says so: its length is that of what it sends
        request.send_response(status)
        if fault == "gzip":
            body = gzip.compress(body)
            request.send_header("Content-Encoding", "gzip")
        if fault != "endless":
            request.send_header("Content-Length", str(len(body)))
        if status == 206:
            request.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        request.end_headers()
        sent = body[: len(body) // 2] if fault in ("drop", "stall") else body
        for first in range(0, len(sent), 2**16):
            self.is_ending.wait(self.pause_s)
            request.wfile.write(sent[first : first + 2**16])
        while fault == "endless" and not self.is_ending.is_set():
            request.wfile.write(bytes(2**16))
        if fault == "stall":
            self.is_ending.wait()
        request.close_connection = fault in ("drop", "stall")
        return None

    def _refuse(self, request: BaseHTTPRequestHandler, status: int) -> None:
        request.send_response(status)
        if self.retry_after is not None:
            request.send_header("Retry-After", self.retry_after)
        if status == 302:
            request.send_header("Location", request.path)
        request.send_header("Content-Length", "0")
        request.end_headers()
