"""Which class reads which kind of batch."""

from shards.params import FolderSourceParams, PhantomSourceParams, SourceParams
from shards.sources.base import Source
from shards.sources.folder import FolderSource
from shards.sources.phantom import PhantomSource


def open_source(params: SourceParams) -> Source:
    """The source that a batch names with `kind`."""
    match params:
        case PhantomSourceParams():
            return PhantomSource(params)
        case FolderSourceParams():
            return FolderSource(params)
