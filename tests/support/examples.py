"""How many examples a property test draws."""

from hypothesis import settings


def examples(share: float) -> settings:
    """Draw a share of the profile's examples: fewer where each is costly, more where the space is wide."""
    return settings(max_examples=round(share * settings.default.max_examples))
