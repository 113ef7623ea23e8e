"""SIIM-ACR Pneumothorax Segmentation: DICOM radiographs with masks of pneumothoraces as run lengths.

Citation: A. Zawacki et al., "SIIM-ACR Pneumothorax Segmentation", Kaggle, 2019.
Licence: the competition's rules.
Pages: https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation

Layout:
    dicom-images-train/<study>/<series>/<image>.dcm
    dicom-images-test/<study>/<series>/<image>.dcm
    stage_2_images/<image>.dcm (optional: unlabelled)
    stage_2_train.csv (or train-rle.csv of stage 1, which labels dicom-images-train only)
    siim_to_nih.csv (optional, your own: sop_uid,nih_image)
    train_val_list.txt, test_list.txt of NIH ChestX-ray14 (optional, with the mapping: its official split)

What is easily got wrong:
- The run lengths are relative: each start counts from the end of the run before, down the columns, from 0. Read as
  absolute starts they end outside the image or draw scattered dots.
- An image has one row an annotation (up to 10), which may overlap: they are OR-ed, neither summed nor replaced.
- The header is `ImageId, EncodedPixels` with a space in it in some copies; ` -1` with a space is `-1`: no pneumothorax.
- Stage 1 kept the labels of `dicom-images-test` back; stage_2_train.csv has them. Stage 2's own test images have none.
- File names are DICOM identifiers with dots in them.
- The images are NIH ChestX-ray14's (not stated by the organisers); no public mapping is known. A file of your own,
  siim_to_nih.csv with the columns sop_uid and nih_image, is used if it lies in the folder.
- The images were resized; the pixel spacing in the headers may be the originals', and is not used.
"""

from collections.abc import Iterable
from pathlib import Path

from shards.core.errors import SourceError
from shards.core.records import File, MaskRuns, Record, Split
from shards.sources.base import Listing, SourceInfo, layout_in
from shards.sources.csv_tables import read_columns, with_lines
from shards.sources.datasets.nih_identity import list_nih_images, parse_mapping, relatives
from shards.sources.dicom_facts import DicomFacts, read_all_facts
from shards.sources.files import find_list, folders_of, index_files, list_files
from shards.sources.listing import count_warnings, number_warnings, wrong_layout

_LAYOUT = layout_in(__doc__)
KIND = "siim-acr"
FINDING = "Pneumothorax"
SIDE_PX = 1024
LABEL_FILES = ("stage_2_train.csv", "train-rle.csv")
MAPPING_FILE = "siim_to_nih.csv"
SPLIT_FOLDERS: dict[str, Split] = {"dicom-images-train": "train", "dicom-images-test": "test"}
UNLABELLED_FOLDERS = ("dicom-images-test", "stage_2_images")

COLUMNS = ("ImageId", "EncodedPixels")

_IMAGE = r"(?P<name>[^/]+)\.(?:dcm|png)"

Runs = tuple[tuple[int, int], ...]


class SiimAcrSource:
    """Reads SIIM-ACR Pneumothorax."""

    info = SourceInfo(
        name=KIND,
        title="SIIM-ACR Pneumothorax Segmentation",
        modality="chest X-ray",
        num_images=12_047,
        num_patients=None,
        tasks=("classification", "segmentation"),
        licence="Kaggle competition rules",
        is_redistributable=False,
        citation="A. Zawacki et al., SIIM-ACR Pneumothorax Segmentation, Kaggle, 2019",
        pages=("https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation",),
        layout=_LAYOUT,
        shares_images_with=relatives(KIND),
    )

    def read(self, root: Path) -> Listing:
        """List all images with a row, and the unlabelled ones of the test folders.

        Raises:
            SourceError: a file is missing or not what it should be.
        """
        paths = list_files(root, self.info.num_images)
        lists = [find_list(root, paths, name) for name in LABEL_FILES]
        labels = next((path for path in lists if path.is_file()), lists[0])
        runs = parse_runs(read_columns(labels, COLUMNS, "SIIM-ACR's masks"), str(labels))
        index = index_files(root, paths, _IMAGE)
        labelled = sorted(index.keys() & runs.keys())
        others = sorted(index.keys() - runs.keys())
        unlabelled = [name for name in others if set(UNLABELLED_FOLDERS) & folders_of(index[name])]
        if not labelled and not unlabelled:
            raise wrong_layout(self.info, root, f"no image of {labels.name} is there")
        facts = read_all_facts(root, {name: index[name] for name in (*labelled, *unlabelled)})
        records = tuple(_record(name, index[name], found, runs.get(name)) for name, found in facts.items())
        pairs = find_list(root, paths, MAPPING_FILE)
        mapping = read_mapping(pairs) if pairs.is_file() else None
        counts = {
            f"images of {labels.name} are not there": len(runs) - len(labelled),
            f"images without a row in {labels.name} were left out": len(others) - len(unlabelled),
        }
        warnings = (*count_warnings(self.info, records[: len(labelled)]), *number_warnings(self.info, counts))
        return list_nih_images(self.info, root, paths, records, mapping, warnings)


def parse_runs(rows: Iterable[tuple[str, ...]], where: str) -> dict[str, tuple[Runs, ...]]:
    """Parse the annotations of each image from rows of the columns `COLUMNS`, in their order; none: no pneumothorax.

    Raises:
        SourceError: a row is neither -1 nor pairs of numbers that end inside the image, or an image has both.
    """
    found: dict[str, list[Runs | None]] = {}
    for number, (name, runs) in with_lines(rows):
        found.setdefault(name, []).append(_parse_row(runs, f"{where} line {number}"))
    both = [name for name, annotations in found.items() if None in annotations and len(set(annotations)) > 1]
    if both:
        raise SourceError(f"{where}: {both[0]} has both -1 and a mask; expected one or the other")
    return {name: tuple(runs for runs in annotations if runs is not None) for name, annotations in found.items()}


def _parse_row(value: str, where: str) -> Runs | None:
    if value == "-1":
        return None
    numbers = value.split()
    if not numbers or len(numbers) % 2 or not all(number.isascii() and number.isdigit() for number in numbers):
        raise SourceError(f"{where}: expected -1, or pairs of numbers (pixels skipped, pixels inside)")
    lengths = list(map(int, numbers))
    if sum(lengths) > SIDE_PX**2:
        raise SourceError(f"{where}: the runs end outside {SIDE_PX} x {SIDE_PX} pixels; expected relative starts")
    return tuple(zip(lengths[::2], lengths[1::2], strict=True))


def read_mapping(path: Path) -> dict[str, str]:
    """Read the mapping from image to NIH's file name, from a user's own file.

    Raises:
        SourceError: a column is missing, or an image has two NIH images.
    """
    rows = read_columns(path, ("sop_uid", "nih_image"), "your mapping of SIIM-ACR to NIH ChestX-ray14")
    return parse_mapping(((name, image) for name, image in rows), str(path))


def _record(name: str, path: str, facts: DicomFacts, runs: tuple[Runs, ...] | None) -> Record:
    split = next((split for folder, split in SPLIT_FOLDERS.items() if folder in folders_of(path)), None)
    return Record(
        source_id=name,
        image=File(path),
        patient=f"{KIND}/{name}",
        view=facts.view,
        labels={FINDING: None if runs is None else int(bool(runs))},
        masks={} if runs is None else {FINDING: MaskRuns(runs, SIDE_PX, SIDE_PX)},
        split=split,
        sex=facts.sex,
        age_years=facts.age_years,
        spacing_mm="unusable",
    )


SOURCE = SiimAcrSource()
