"""Errors a user can cause; each message says what was found, what was expected, and what to do."""


class ShardError(Exception):
    """Base of every error that a user of `shards` can cause."""


class ConfigError(ShardError):
    """A parameter is misspelt, missing, out of range, or contradicts another one."""


class SourceError(ShardError):
    """A raw dataset does not have the files or columns that its source expects."""


class GridError(ShardError):
    """A grid, crop or token layout that cannot exist."""


class IndexFormatError(ShardError):
    """A shard set is missing, damaged, or written by another format version."""


class IdKeyError(ShardError):
    """The project's identity key is missing or is not the one the shards were built with."""


class DecoderError(ShardError):
    """The process that decodes compressed DICOM pixels cannot be started."""
