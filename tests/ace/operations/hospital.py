"""Whoever sends images to a bucket on a real S3 server on loopback."""

import time
from pathlib import Path

import fsspec

from ace.operations.bucket import Bucket, Seen

SETTLE_S = 600.0


class Hospital:
    """Sends images to `s3://NAME/in`."""

    def __init__(self, server: dict[str, str], name: str) -> None:
        self.system, self.name = fsspec.filesystem("s3", **server), name
        self.system.call_s3("create_bucket", Bucket=name)

    @property
    def url(self) -> str:
        return f"s3://{self.name}/in"

    def put(self, delivery: str, files: dict[str, bytes], *, is_complete: bool = True) -> str:
        for name, content in files.items() | ({"_COMPLETE": b""}.items() if is_complete else set()):
            self.system.call_s3("put_object", Bucket=self.name, Key=f"in/{delivery}/{name}", Body=content)
        return f"{self.url}/{delivery}"

    def put_folder(self, delivery: str, folder: Path) -> str:
        """Send the files of a folder, the marker last, if it has one."""
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        is_complete = files.pop("_COMPLETE", None) is not None
        return self.put(delivery, files, is_complete=is_complete)

    def bucket(self, max_objects: int = 1000, max_bytes: float = 1e9) -> Bucket:
        return Bucket(self.url, max_objects, max_bytes)

    def sent(self, known: dict[str, list[Seen]] | None = None, later_s: float = 0) -> dict[str, tuple[bool, str]]:
        found = self.bucket().sent(known or {}, SETTLE_S, time.time() + later_s)
        return {item.name: (item.is_complete, item.text) for item in found}
