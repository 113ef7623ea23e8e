"""Sites: who gave patients their ids. Patient 1 of two hospitals are two people; of one, in all deliveries, one."""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from shards.core.errors import ConfigError
from shards.core.identity import IdKey, patient_of_site
from shards.core.modality import OWN_KINDS
from shards.core.params import SITE, RegisteredSourceParams

OPTION = "--site"
_NUMBER = re.compile(r"-b\d+$")


def choose_site(
    given: str | None, name: str, root: Path, batches: Mapping[str, RegisteredSourceParams], project: Path
) -> str:
    """Tell the site of a delivery of a user's own images.

    Unless it is given, it is that of the batch itself if it is there, else of the batches whose folder holds this one
    or lies in it and of those of the same name but for the number (`clinic-b000`, `clinic-b001`), else the name without
    its number.

    Args:
        given: Site that the user names; None for nothing.
        name: Name of the batch.
        root: Folder of the batch.
        batches: The registered ones.
        project: The folder that their paths are relative to.

    Raises:
        ConfigError: the name is no site's, or these batches are of several sites.
    """
    if given is not None:
        if not re.fullmatch(SITE, given):
            raise ConfigError(
                f"{OPTION} '{given}': expected letters, digits, '.', '_' and '-', a letter or digit first"
            )
        return given
    if name in batches:
        return batches[name].site
    own = {other: batch for other, batch in batches.items() if batch.kind in OWN_KINDS}
    near = {
        batch.site
        for other, batch in own.items()
        if _NUMBER.sub("", other) == _NUMBER.sub("", name) or _overlap(root, project / batch.root)
    }
    if len(near) > 1:
        named = ", ".join(f"'{site}'" for site in sorted(near))
        raise ConfigError(
            f"batches of this name or with images in {root} are of the sites {named}; say which one gave the patients "
            f"of the new images their ids: {OPTION} NAME"
        )
    return near.pop() if near else _NUMBER.sub("", name)


def _overlap(one: Path, other: Path) -> bool:
    one, other = one.resolve(), other.resolve()
    return one.is_relative_to(other) or other.is_relative_to(one)


def count_namesakes(
    patients: Collection[str], site: str, sites: Iterable[str], known: Collection[str], key: IdKey
) -> dict[str, int]:
    """Count the patients whose ids other sites use too, and who are taken for other people.

    Args:
        patients: Their own ids, of a delivery.
        site: Site of the delivery.
        sites: Names of all sites of the project.
        known: Pseudonyms of all patients that are registered.
        key: Key behind the pseudonyms.

    Returns:
        Other site → how many there are, where there are any.
    """
    found = {
        other: sum(key.pseudonym("patient", patient_of_site(other, patient)) in known for patient in patients)
        for other in sites
        if other != site
    }
    return {other: number for other, number in found.items() if number}
