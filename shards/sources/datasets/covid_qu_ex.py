"""COVID-QU-Ex: small radiographs of COVID-19, other pneumonia and healthy chests, with masks of lungs and infection.

Citation: A. M. Tahir et al., "COVID-19 infection localization and severity grading from chest X-ray images", Computers
in Biology and Medicine 139, 2021, 105002.
Licence: CC BY-SA 4.0 on Kaggle for the collection; its sources have their own.
Pages: https://www.kaggle.com/datasets/anasmohammedtahir/covidqu

Layout:
  Lung Segmentation Data/{Train,Val,Test}/{COVID-19,Non-COVID,Normal}/{images,lung masks}/NAME.png
  Infection Segmentation Data/{Train,Val,Test}/{COVID-19,Non-COVID,Normal}/{images,lung masks,infection masks}/NAME.png
  (either or both; each may lie in a folder of its own name once more)

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

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from shards.core.errors import SourceError
from shards.core.records import File, Mask, MaskFiles, Record, Split
from shards.sources.base import Listing, SourceInfo, layout_in
from shards.sources.datasets.nih_identity import FAMILY
from shards.sources.files import find_files, list_files
from shards.sources.listing import count_warnings, number_warnings, wrong_layout

_LAYOUT = layout_in(__doc__)
KIND = "covid-qu-ex"
CLASSES = ("COVID-19", "Non-COVID", "Normal")
SPLITS: dict[str, Split] = {"Train": "train", "Val": "val", "Test": "test"}
TREES = ("Lung Segmentation Data", "Infection Segmentation Data")
STRUCTURES = {"lung masks": "lungs", "infection masks": "infection"}
"""Folder → name of the masks in it."""

_FILE = (
    rf"(?-i:(?P<split>{'|'.join(SPLITS)})/(?P<group>{'|'.join(CLASSES)})/(?P<folder>images|{'|'.join(STRUCTURES)}))/"
    r"(?P<name>[^/]+)\.png"
)
_SHARED = (*FAMILY, "padchest")
_FIRST_GOES_BEFORE: tuple[Split, ...] = ("test", "val", "train")


@dataclass(kw_only=True)
class Found:
    """An image as one tree or both have it.

    Attributes:
        path: Path of the image, in the first tree that has it.
        group: Name of its class.
        splits: Splits that the trees give it.
        masks: Structure → path; the first tree's before the second's.
    """

    path: str
    group: str
    splits: set[Split]
    masks: dict[str, str] = field(default_factory=dict)


class CovidQuExSource:
    """Reads COVID-QU-Ex."""

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
        layout=_LAYOUT,
        shares_images_with=_SHARED,
    )

    def read(self, root: Path) -> Listing:
        """List all images of the trees that are there.

        Raises:
            SourceError: no image is there, or two images have one name.
        """
        paths = list_files(root, self.info.num_images)
        images: dict[str, Found] = {}
        num_shared = num_masks = 0
        for tree in (*TREES, None):
            found, num_strays = _read_tree(root, [path for path in paths if _tree_of(path) == tree])
            num_masks += num_strays
            num_shared += len(found.keys() & images.keys())
            _merge(root, images, found)
        if not images:
            raise wrong_layout(self.info, root, "no images")
        records = tuple(_record(name, images[name]) for name in sorted(images))
        counts = {
            "images are in both trees and count once": num_shared,
            "of these have another split in each tree; test goes before val, val before train": sum(
                len(found.splits) > 1 for found in images.values()
            ),
            "images have no mask of the lungs": sum("lungs" not in found.masks for found in images.values()),
            "masks have no image of their name in their tree, split and class, and were left out": num_masks,
        }
        return Listing(
            records=records,
            patient_grouping="image",
            warnings=(*count_warnings(self.info, records), *number_warnings(self.info, counts)),
            shares_images_with=_SHARED,
        )


def _tree_of(path: str) -> str | None:
    """Return the tree of a path; None where the root itself is a tree, or the path lies in neither."""
    return next((tree for tree in TREES if tree in path.split("/")), None)


def _read_tree(root: Path, paths: Iterable[str]) -> tuple[dict[str, Found], int]:
    """Name → image, from the files of one tree; and how many masks are of none of them."""
    images: dict[str, Found] = {}
    masks: dict[tuple[str, ...], dict[str, str]] = {}
    for match, path in find_files(paths, _FILE):
        split, group, folder, name = match.group("split", "group", "folder", "name")
        if folder in STRUCTURES:
            masks.setdefault((split, group, name), {})[STRUCTURES[folder]] = path
        elif name in images:
            raise SourceError(f"{root}: {images[name].path} and {path} have one name; expected every name once")
        else:
            images[name] = Found(
                path=path, group=group, splits={SPLITS[split]}, masks=masks.setdefault((split, group, name), {})
            )
    num_used = sum(len(found.masks) for found in images.values())
    return images, sum(map(len, masks.values())) - num_used


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
    masks: dict[str, Mask] = {key: MaskFiles(files=(File(path),)) for key, path in sorted(found.masks.items())}
    return Record(
        source_id=name,
        image=File(found.path),
        patient=f"{KIND}/{name}",
        labels={group: int(group == found.group) for group in CLASSES},
        masks=masks,
        split=next(split for split in _FIRST_GOES_BEFORE if split in found.splits),
    )


SOURCE = CovidQuExSource()
