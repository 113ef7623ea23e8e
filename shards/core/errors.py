"""Errors a user can cause; each message says what was found, what was expected, and what to do."""


class UserError(Exception):
    """Base of every error that a user of `shards` can cause."""


class ConfigError(UserError):
    """A parameter is misspelt, missing, out of range, or contradicts another one."""


class SourceError(UserError):
    """A raw dataset does not have the files or columns that its source expects."""


class GridError(UserError):
    """A grid, crop or token layout that cannot exist."""


class IndexFormatError(UserError):
    """A shard set is missing, damaged, or written by another format version."""


class ContaminationError(UserError):
    """The measured images may have been trained on."""


class NoSpaceError(UserError):
    """A disk is full, or has too little room for what is about to be written."""


class WorkerError(UserError):
    """The processes that do the work cannot be started, or are ended from outside."""


class StoreError(UserError):
    """A remote shard set cannot be reached or read, or there is no room for its files."""


class OutOfReachError(StoreError):
    """A server gave no answer that could be used, however often it was asked: the same command may succeed later."""


class DamagedImageError(UserError):
    """The bytes of a shard's image are not all there, or not as they were written."""


class IdKeyError(UserError):
    """The project's identity key is missing or is not the one the shards were built with."""


class DecoderError(UserError):
    """The process that decodes compressed DICOM pixels, and JPEGs of rare sampling, cannot be started."""
