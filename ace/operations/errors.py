"""Errors that a user of the service can cause, or that its next call tries to get over."""

from shards.core.errors import UserError


class OperationsError(UserError):
    """A step of operation is refused: the service's clone, its log, its tags or its models are not as they must be."""


class BusyError(UserError):
    """Another call is at work on the deliveries."""


class StoppedError(UserError):
    """A person has stopped the service."""


class HeldDeliveryError(UserError):
    """A step of a delivery failed for no fault of its images; the next call tries it again."""
