"""The identity key in configs/key_for_public_images, which everybody can read, and the warning to whoever uses it."""

import sys

PUBLISHED_FINGERPRINT = "idkey-736667a15f06aa5f"
"""Fingerprint of that key: whatever the file is called and wherever it lies, a copy of the key has the same one."""


def warn_of_published_key(fingerprint: str) -> None:
    """Print a warning to stderr if pseudonyms are made with the published key.

    Args:
        fingerprint: Fingerprint of the key behind a batch's pseudonyms (`IdKey.fingerprint`).
    """
    if fingerprint == PUBLISHED_FINGERPRINT:
        print(
            "warning: the identity key is the published one (configs/key_for_public_images): whoever has it can find "
            "out which patient a pseudonym stands for, so it is fit for public images only. For patients of your own "
            "make a key of your own, `python -m shards key new PATH`, and set ACE_ID_KEY_FILE=PATH",
            file=sys.stderr,
        )
