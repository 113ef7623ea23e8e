"""Patients told by the paths of their images, by a rule that the user gives: `register --patient-from REGEX`."""

import re
from collections.abc import Iterable
from pathlib import Path
from unicodedata import normalize

from shards.core.errors import ConfigError, SourceError

OPTION = "--patient-from"


def parse_patient_rule(text: str) -> re.Pattern[str]:
    """Compile a regular expression that finds the patient in the path of an image.

    Raises:
        ConfigError: it is none.
    """
    try:
        return re.compile(text)
    except re.error as error:
        raise ConfigError(f"{OPTION} {text}: expected a regular expression, as '^([^/_]+)_': {error}") from None


def patient_in(path: str, rule: re.Pattern[str]) -> str | None:
    """Find the patient in the path of an image, in composed letters; None where the rule finds none.

    Args:
        path: Relative to the folder, with `/`.
        rule: Searched in the path. The patient is its first group that takes part, or all that it finds if it has no
            groups.
    """
    match = rule.search(normalize("NFC", path))
    if match is None:
        return None
    found = next((group for group in match.groups() if group), "") if rule.groups else match[0]
    return found.strip() or None


def patients_in(root: Path, paths: Iterable[str], rule: re.Pattern[str]) -> dict[str, str]:
    """Find the patients in the paths of all images: path → patient.

    Raises:
        SourceError: the rule finds none in some of them; they may be patients' names and are not repeated.
    """
    found = {path: patient_in(path, rule) for path in paths}
    num_missed = sum(patient is None for patient in found.values())
    if num_missed:
        raise SourceError(
            f"{root}: {OPTION} finds no patient in the paths of {num_missed} of {len(found)} images; expected one in "
            "every path, taken relative to that folder"
        )
    return {path: patient for path, patient in found.items() if patient is not None}
