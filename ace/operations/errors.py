"""The error that a user of the accepted models can cause."""

from shards.core.errors import UserError


class OperationsError(UserError):
    """A step of operation is refused: the service's clone, its log, its tags or its models are not as they must be."""
