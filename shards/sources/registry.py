"""Map each kind of dataset to the module that reads it; a source is imported when it is asked for."""

from importlib import import_module
from typing import cast

from shards.core.errors import ConfigError
from shards.sources.base import Source

MODULES = {
    "phantom": "phantom",
    "folder": "folder",
    "dicom": "dicom_tree",
    "nih-chestxray14": "nih_chestxray14",
    "chexpert": "chexpert",
    "mimic-cxr-jpg": "mimic_cxr_jpg",
    "padchest": "padchest",
    "rsna-pneumonia": "rsna_pneumonia",
    "siim-acr": "siim_acr",
    "vindr-cxr": "vindr_cxr",
    "shenzhen": "shenzhen",
    "montgomery": "montgomery",
    "jsrt": "jsrt",
    "chestx-det": "chestx_det",
    "covid-qu-ex": "covid_qu_ex",
    "open-i": "open_i",
    "eyepacs": "eyepacs",
    "drive": "drive",
    "drishti-gs": "drishti_gs",
    "refuge": "refuge",
    "idrid": "idrid",
}
"""Kind → module of shards/sources/datasets, which names its source `SOURCE`."""


def open_source(kind: str) -> Source:
    """Open the source of a kind.

    Raises:
        ConfigError: there is none; names those there are.
    """
    if kind not in MODULES:
        kinds = ", ".join(name for name in MODULES if name != "phantom")  # whose stage makes it: nothing to register
        raise ConfigError(f"found no source '{kind}'; expected one of {kinds} (`python -m shards sources`)")
    return cast(Source, import_module(f"shards.sources.datasets.{MODULES[kind]}").SOURCE)
