"""Derive pseudonyms and splits from a keyed hash.

The same patient always gets the same ones, and nobody without the key can tell which patient that is.
"""

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shards.core.errors import IdKeyError
from shards.core.params import SplitParams
from shards.core.records import Split
from shards.runtime.atomic import clear_when_full

SPLITS: tuple[Split, ...] = ("train", "val", "test")
KEY_FILE_VARIABLE = "ACE_ID_KEY_FILE"
_KEY_BYTES = 32
_NEW_KEY = (
    "make one with `python -m shards key new PATH` (outside the project, backed up, never in git or DVC), "
    f"then set {KEY_FILE_VARIABLE}=PATH"
)


@dataclass(frozen=True, repr=False)
class IdKey:
    """The key behind patient pseudonyms.

    Attributes:
        secret: The key's bytes.
        is_public: The phantom's constant: nobody is behind its ids, so they need no hiding.
    """

    secret: bytes
    is_public: bool

    @property
    def fingerprint(self) -> str:
        """A public name of the key: tells two keys apart, gives neither away."""
        return f"idkey-{self._digest('fingerprint', '').hex()[:16]}"

    def pseudonym(self, purpose: Literal["patient", "study", "source"], name: str) -> str:
        """Hash a name to 16 hex digits; the same name under another purpose gives unrelated ones."""
        return self._digest(purpose, name).hex()[:16]

    def position(self, patient: str) -> float:
        """Hash a patient to a position in [0, 1): uniform over patients, the same whatever other patients there are."""
        return int.from_bytes(self._digest("split", patient)[:8], "big") / 2**64

    def _digest(self, purpose: str, name: str) -> bytes:
        return hmac.digest(self.secret, f"ace/{purpose}/{name}".encode(), "sha256")


PUBLIC_KEY = IdKey(hashlib.sha256(b"ACE phantom: public identity key").digest(), is_public=True)
"""The key of sources whose ids belong to nobody."""


def patient_of_site(site: str, patient: str) -> str:
    """Return the text that is hashed for a patient of a user's own images: the site that gave the id, and the id.

    Args:
        site: Name of the site; empty where nobody says it, as in batches of earlier versions.
        patient: The id, unique within the site.
    """
    return f"site/{site}/{patient}" if site else patient


def open_splits(official: Split | None, official_splits: frozenset[Split]) -> tuple[Split, ...]:
    """Return the splits that a patient's position decides between; a single one is decided.

    An official split is kept. Where a dataset has officially no validation patients, part of its training patients are.

    Args:
        official: The patient's split in the dataset.
        official_splits: Splits that the dataset has.
    """
    if official is None:
        return SPLITS
    if official == "train" and "val" not in official_splits:
        return ("train", "val")
    return (official,)


def split_of(position: float, fractions: SplitParams, splits: tuple[Split, ...] = SPLITS) -> Split:
    """Decide the split of a patient by nothing but what its first manifest says, so that adding data moves nobody.

    Changing the fractions moves only patients next to the borders.

    Args:
        position: The patient's (`IdKey.position`).
        fractions: Expected ones, of all patients.
        splits: Splits in question (`open_splits`), each as likely as its part of their fractions; the first where they
            have none.
    """
    used = [name for name in splits if getattr(fractions, name) > 0] or [splits[0]]
    total = sum(getattr(fractions, name) for name in used)
    border = 0.0
    for name in used[:-1]:
        border += getattr(fractions, name) / total
        if position < border:
            return name
    return used[-1]


def load_id_key(expected_fingerprint: str) -> IdKey:
    """Load the project's secret key from the file that ACE_ID_KEY_FILE names.

    Args:
        expected_fingerprint: `id_key_fingerprint` of the batch's source in params.yaml.

    Raises:
        IdKeyError: the file is missing or is no key, or its fingerprint is another one.
    """
    key = read_id_key()
    if key.fingerprint != expected_fingerprint:
        raise IdKeyError(
            f"the key in {KEY_FILE_VARIABLE} has the fingerprint '{key.fingerprint}', params.yaml expects "
            f"id_key_fingerprint: '{expected_fingerprint}' (batches). With another key patients would change their "
            "pseudonyms and splits: point the variable at the project's key"
        )
    return key


def read_id_key() -> IdKey:
    """Read the key in the file that ACE_ID_KEY_FILE names, whatever its fingerprint.

    Raises:
        IdKeyError: the variable is not set, or the file is missing or is no key.
    """
    name = os.environ.get(KEY_FILE_VARIABLE, "")
    if not name:
        raise IdKeyError(
            f"{KEY_FILE_VARIABLE} is not set; images of patients need the project's identity key: {_NEW_KEY}"
        )
    try:
        secret = bytes.fromhex(Path(name).read_text(encoding="ascii").strip())
    except OSError as error:
        raise IdKeyError(
            f"{KEY_FILE_VARIABLE}={name}: {error.strerror}; restore the key's backup, or {_NEW_KEY}"
        ) from None
    except ValueError:
        secret = b""
    if len(secret) != _KEY_BYTES:
        raise IdKeyError(f"{KEY_FILE_VARIABLE}={name}: not a key; expected {2 * _KEY_BYTES} hex digits. {_NEW_KEY}")
    return IdKey(secret, is_public=False)


def create_key(path: Path) -> str:
    """Write a fresh key that only its owner may read; returns its fingerprint.

    Raises:
        IdKeyError: the file exists (a lost key is lost with all its pseudonyms), or lies in a git work tree.
        NoSpaceError: the disk is full; there is no file then.
    """
    folder = path.resolve().parent
    tree = next((parent for parent in (folder, *folder.parents) if (parent / ".git").exists()), None)
    if tree is not None:
        raise IdKeyError(
            f"{path} lies in the git work tree {tree}; choose a path outside it, so that the key is never published"
        )
    folder.mkdir(parents=True, exist_ok=True)
    key = IdKey(secrets.token_bytes(_KEY_BYTES), is_public=False)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise IdKeyError(f"{path} exists; a key is never overwritten, choose another path") from None
    with clear_when_full(folder):
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(key.secret.hex() + "\n")
        except OSError:
            path.unlink()
            raise
    return key.fingerprint
