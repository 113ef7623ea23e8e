"""The job of building a batch's tars, as the stage `shard` and a repair have it: what decides them, and their steps."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from shards.build.encode import SampleEncoder
from shards.build.plan import BatchPlan, fingerprint, plan_batch
from shards.build.tar_builder import TarBuilder
from shards.core.errors import SourceError
from shards.core.identity import PUBLIC_KEY
from shards.core.params import GridParams, PhantomSourceParams, ShardParams, SourceParams
from shards.delivery.manifest import format_manifest, hashed, identify
from shards.format.layout import sha256_of
from shards.runtime.atomic import clear_when_full, write_text
from shards.runtime.scratch import scratch_root, unfinished_work
from shards.sources.datasets.phantom import PhantomSource


@dataclass(frozen=True)
class ManifestFile:
    """A batch's manifest: the registered file, or the text that stands for one.

    Attributes:
        sha256: Hash of its content, in hex.
        path: The registered file; None for a text.
        text: The text.
    """

    sha256: str
    path: Path | None = None
    text: str = ""

    def placed_in(self, scratch: Path) -> Path:
        """Return the file to read; a text is written to `scratch` first."""
        if self.path is not None:
            return self.path
        write_text(scratch / "manifest.jsonl", self.text)
        return scratch / "manifest.jsonl"


@dataclass(frozen=True, kw_only=True)
class BuildJob:
    """Everything that decides the tars of one batch, and the steps that lead to them.

    Attributes:
        batch: Name of the batch.
        source: Section `source`: where the images come from.
        grid: Section `grid`.
        params: Section `shard`.
    """

    batch: str
    source: SourceParams
    grid: GridParams
    params: ShardParams

    @cached_property
    def root(self) -> Path:
        """The folder that the paths of the manifest are relative to.

        Raises:
            SourceError: nothing says where the images are.
        """
        if not self.source.root:
            path = Path(self.source.dep).with_suffix(".root.txt")
            raise SourceError(
                f"{path}: not found, so nothing here says where the images are; say it: "
                "`python -m shards relocate NAME FOLDER`"
            )
        return Path(self.source.root)

    @cached_property
    def manifest(self) -> ManifestFile:
        """The manifest of the batch. The phantom, which a stage makes, is not registered: its manifest is made here.

        Raises:
            SourceError: it is missing or not the registered one, or the phantom is not whole.
        """
        if isinstance(self.source, PhantomSourceParams):
            listing = PhantomSource().read(self.root)
            listing = replace(listing, records=tuple(hashed(listing.records, self.root)))
            delivery = identify(listing, self.source.kind, PUBLIC_KEY, split_rule="hash", with_sex=False)
            text = "".join(format_manifest(delivery))
            return ManifestFile(hashlib.sha256(text.encode()).hexdigest(), text=text)
        path, expected = Path(self.source.dep), self.source.dep_sha256
        found = sha256_of(path) if path.is_file() else expected  # a missing one is named where it is read
        if found != expected:
            raise SourceError(
                f"{path}: sha256 {found}, its batch's file in batches/ expects {expected}; restore it, or "
                "register the changed files as a new batch"
            )
        return ManifestFile(found, path)

    @cached_property
    def encoder(self) -> SampleEncoder:
        """Makes samples of the batch's images."""
        return SampleEncoder(
            batch=self.batch,
            kind=self.source.kind,
            root=self.root,
            channels=self.source.channels,
            spec=self.grid.spec,
            params=self.params,
        )

    @contextmanager
    def unfinished(self, command: str, *, wait: bool) -> Iterator[Path]:
        """Hold the scratch folder of this job alone; it goes when the block ends, and stays after an error or a kill.

        Args:
            command: Name of the work: `shard` or `repair`.
            wait: Wait for another process at the same work, instead of refusing.

        Raises:
            ConfigError: another process is at the same work, or there is no place for a scratch folder.
            SourceError: the manifest is missing or not the registered one, or nothing says where the images are.
            NoSpaceError: the disk is full.
        """
        encoder = self.encoder
        with (
            clear_when_full(scratch_root()),
            unfinished_work(
                f"{command}/{self.batch}", fingerprint(self.manifest.sha256, encoder), wait=wait
            ) as scratch,
        ):
            yield scratch

    def plan(self, scratch: Path, *, check_files: bool = True) -> BatchPlan:
        """Plan the tars (`plan_batch`).

        Args:
            scratch: The scratch folder.
            check_files: Require that all files of the batch are there and of their sizes.

        Raises:
            SourceError: files are missing or changed.
        """
        return plan_batch(self.manifest.placed_in(scratch), self.root, self.params, check_files=check_files)

    def builder(self, plan: BatchPlan, scratch: Path) -> TarBuilder:
        """Return what builds the planned tars into the scratch folder."""
        return TarBuilder(manifest=plan.manifest, header=plan.header, encoder=self.encoder, scratch=scratch)
