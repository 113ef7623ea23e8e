"""COVID-QU-Ex: small radiographs of COVID-19, other pneumonia and healthy chests, with masks of lungs and infection.

Citation: A. M. Tahir et al., "COVID-19 infection localization and severity grading from chest X-ray images", Computers
in Biology and Medicine 139, 2021, 105002.
Licence: CC BY-SA 4.0 on Kaggle for the collection; its sources have their own.
Pages: https://www.kaggle.com/datasets/anasmohammedtahir/covidqu

What is easily got wrong:
- Two trees: lungs for all 33,920 images, infection for 5,826 of them. An image in both, by its name and its file's
  size, is one record; where the trees disagree on its split, test goes before val and val before train, so that no
  image of a test set is trained on.
- Each tree lies in a folder of its own name once more in some archives.
- Names hold spaces and parentheses, as `Normal (21).png`.
- Infection masks of Normal and Non-COVID are empty pictures.
- Patients are unknown. Normal and Non-COVID images come from RSNA Pneumonia (so from NIH ChestX-ray14), PadChest and a
  set of children: no mapping tells which.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from shards.errors import SourceError
from shards.records import File, Mask, MaskFiles, Record, Split
from shards.sources.base import Listing, SourceInfo, count_warnings, number_warning
from shards.sources.image_index import find_files
from shards.sources.nih_identity import FAMILY

KIND = "covid-qu-ex"
CLASSES = ("COVID-19", "Non-COVID", "Normal")
SPLITS: dict[str, Split] = {"Train": "train", "Val": "val", "Test": "test"}
TREES = ("Lung Segmentation Data", "Infection Segmentation Data")
MASK_FOLDERS = {"lung": "lung masks", "infection": "infection masks"}

_IMAGES = "images"
_SHARED = (*FAMILY, "padchest")
_FIRST_GOES_BEFORE: tuple[Split, ...] = ("test", "val", "train")


@dataclass
class Found:
    """An image as one tree or both have it.

    Attributes:
        path: Of the image, in the first tree that has it.
        group: Its class.
        splits: That the trees give it.
        masks: Structure → path; the first tree's before the second's.
    """

    path: str
    group: str
    splits: set[Split]
    masks: dict[str, str] = field(default_factory=dict)


class CovidQuExSource:
    """COVID-QU-Ex as records."""

    info = SourceInfo(
        name=KIND,
        title="COVID-QU-Ex",
        modality="chest X-ray",
        num_images=33_920,
        num_patients=None,
        tasks=("classification", "segmentation"),
        licence="CC BY-SA 4.0 as stated on Kaggle; its sources have their own terms",
        is_redistributable=False,
        citation="A. M. Tahir et al., COVID-19 infection localization and severity grading from chest X-ray images, "
        "Computers in Biology and Medicine 139, 2021",
        pages=("https://www.kaggle.com/datasets/anasmohammedtahir/covidqu",),
        layout="Lung Segmentation Data/{Train,Val,Test}/{COVID-19,Non-COVID,Normal}/{images,lung masks}/<name>.png\n"
        "Infection Segmentation Data/{Train,Val,Test}/{COVID-19,Non-COVID,Normal}/"
        "{images,lung masks,infection masks}/<name>.png\n"
        "(either or both; each may lie in a folder of its own name once more)",
        shares_images_with=_SHARED,
    )

    def read(self, root: Path) -> Listing:
        """All images of the trees that are there.

        Raises:
            SourceError: no image is there, or two images have one name.
        """
        images: dict[str, Found] = {}
        num_shared = 0
        for tree in find_trees(root):
            found = _read_tree(root, tree)
            num_shared += len(found.keys() & images.keys())
            _merge(root, images, found)
        if not images:
            raise SourceError(f"{root}: no images; expected\n{self.info.layout}")
        records = tuple(_record(name, images[name]) for name in sorted(images))
        warnings = (
            *count_warnings(self.info, records),
            *number_warning(KIND, num_shared, "images are in both trees and count once"),
            *number_warning(
                KIND,
                sum(len(found.splits) > 1 for found in images.values()),
                "of these have another split in each tree; test goes before val, val before train",
            ),
            *number_warning(
                KIND, sum("lung" not in found.masks for found in images.values()), "images have no mask of the lungs"
            ),
        )
        return Listing(records, "image", warnings, _SHARED)


def find_trees(root: Path) -> list[str]:
    """The folders (relative to `root`) that hold Train, Val or Test: the trees', or `root` itself."""
    found = [path for tree in TREES for path in (f"{tree}/{tree}", tree) if _is_tree(root / path)]
    return found or (["."] if _is_tree(root) else [])


def _is_tree(folder: Path) -> bool:
    return any((folder / split).is_dir() for split in SPLITS)


def _read_tree(root: Path, tree: str) -> dict[str, Found]:
    images: dict[str, Found] = {}
    for split, group, folder in _folders(root, tree):
        masks = {name: set(_names(root / folder / masks)) for name, masks in MASK_FOLDERS.items()}
        for name in _names(root / folder / _IMAGES):
            path = str(folder / _IMAGES / name)
            if name in images:
                raise SourceError(f"{root}: {images[name].path} and {path} have one name; expected every name once")
            drawn = {key: str(folder / MASK_FOLDERS[key] / name) for key, names in masks.items() if name in names}
            images[name] = Found(path, group, {split}, drawn)
    return images


def _folders(root: Path, tree: str) -> Iterator[tuple[Split, str, PurePosixPath]]:
    for part, split in SPLITS.items():
        for group in CLASSES:
            if (root / tree / part / group / _IMAGES).is_dir():
                yield split, group, PurePosixPath(tree) / part / group


def _names(folder: Path) -> list[str]:
    return [path for path in find_files(folder, (".png",)) if "/" not in path] if folder.is_dir() else []


def _merge(root: Path, images: dict[str, Found], others: dict[str, Found]) -> None:
    for name, other in others.items():
        found = images.setdefault(name, other)
        if found is other:
            continue
        same_size = (root / found.path).stat().st_size == (root / other.path).stat().st_size
        if found.group != other.group or not same_size:
            raise SourceError(
                f"{root}: {found.path} and {other.path} have one name, but another class or size; expected one image. "
                "Register the trees on their own: give the folder of one as the root"
            )
        found.splits |= other.splits
        found.masks = other.masks | found.masks


def _record(name: str, found: Found) -> Record:
    stem = name.rpartition(".")[0]
    masks: dict[str, Mask] = {key: MaskFiles((File(path),)) for key, path in sorted(found.masks.items())}
    return Record(
        source_id=stem,
        image=File(found.path),
        patient=f"{KIND}/{stem}",
        labels={group: int(group == found.group) for group in CLASSES},
        masks=masks,
        split=next(split for split in _FIRST_GOES_BEFORE if split in found.splits),
    )


SOURCE = CovidQuExSource()
