"""Montgomery County X-ray Set: tuberculosis and lung masks.

Jaeger S. et al., "Two public chest X-ray datasets for computer-aided screening of pulmonary diseases", Quant. Imaging
Med. Surg. 4(6), 2014. From the US National Library of Medicine, free for research with citation:
https://data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets/Montgomery-County-CXR-Set/

Layout:
    CXR_png/MCUCXR_0001_0.png
    ManualMask/leftMask/MCUCXR_0001_0.png
    ManualMask/rightMask/MCUCXR_0001_0.png (or one merged mask: masks/MCUCXR_0001_0.png)
    ClinicalReadings/MCUCXR_0001_0.txt (optional: sex, age)

- 138 images: 80 normal (name ends in 0), 58 tuberculosis (1). 4020 x 4892 or 4892 x 4020 pixels of 0.0875 mm, 12 grey
  bits as digitised; the PNG files are 8 bit in most copies and 16 bit in some.
- Masks of the left and the right lung are files of the image's own name in two folders, which are named by the side of
  the image: `leftMask` is what a viewer sees on the left, the patient's right lung. `left_lung` and `right_lung` are
  the patient's, as in JSRT; `lungs` is either. Some copies have one merged mask instead, in `masks/`: `lungs` alone.
- Clinical readings begin with `Patient's Sex: F` and `Patient's Age: 027Y`; the free text after them is never read.
- Patients have no ids: patients are images. The readings say of three images that they show the patient of another:
  0117 that of 0113, and 0166 and 0170 that of 0162. Those stay together.
"""

import re
from pathlib import Path

from shards.core.errors import SourceError
from shards.core.records import File, MaskFiles, Record, Sex
from shards.sources.base import Listing, SourceInfo, layout_in
from shards.sources.files import index_files, list_files
from shards.sources.listing import count_warnings, no_images, number_warnings

_LAYOUT = layout_in(__doc__)
_NAME = r"(?P<name>MCUCXR_\d{4}_[01])"
_SEX = re.compile(r"Patient's Sex:\s*([MFO])\s*")
_AGE = re.compile(r"Patient's Age:\s*(\d{1,3})Y\s*")
SAME_PATIENT = {
    "MCUCXR_0117_1": "MCUCXR_0113_1",
    "MCUCXR_0166_1": "MCUCXR_0162_1",
    "MCUCXR_0170_1": "MCUCXR_0162_1",
}
"""Image → the first image of its patient, where the clinical readings say so."""
_NUM_LINES = 2
_MAX_LINE_BYTES = 200


class MontgomerySource:
    """Images by name, labels in the name."""

    info = SourceInfo(
        name="montgomery",
        title="Montgomery County X-ray Set",
        modality="chest X-ray",
        num_images=138,
        num_patients=None,
        tasks=("classification", "segmentation"),
        licence="NLM: free for research, cite",
        is_redistributable=False,
        citation="Jaeger et al., Two public chest X-ray datasets for computer-aided screening of pulmonary diseases, "
        "Quant. Imaging Med. Surg. 4(6), 2014",
        pages=("https://data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets/Montgomery-County-CXR-Set/",),
        layout=_LAYOUT,
    )

    def read(self, root: Path) -> Listing:
        """List all images in folders named CXR_png.

        Raises:
            SourceError: there are none, two of one name, or the mask of one lung alone.
        """
        paths = list_files(root)
        images = index_files(root, paths, rf"CXR_png/{_NAME}\.png")
        if not images:
            raise no_images(self.info, root)
        # The folders are named by the side of the image: what lies on its right is the patient's left lung.
        left, right = (index_files(root, paths, rf"{side}Mask/{_NAME}\.png") for side in ("right", "left"))
        merged = index_files(root, paths, rf"masks?/{_NAME}(?:_mask)?\.png")
        if one_sided := sorted((left.keys() ^ right.keys()) & images.keys()):
            raise SourceError(
                f"{root}: masks of one lung alone for {len(one_sided)} images, first {one_sided[0]}; expected files of "
                "the same names in leftMask and rightMask"
            )
        readings = index_files(root, paths, rf"ClinicalReadings/{_NAME}\.txt")
        demographics = {name: parse_demographics(_first_lines(root / path)) for name, path in readings.items()}
        records = tuple(
            Record(
                source_id=name,
                image=File(path),
                patient=f"montgomery/{SAME_PATIENT.get(name, name)}",
                view="PA",
                labels={"Tuberculosis": int(name[-1])},
                masks=_masks(left.get(name), right.get(name), merged.get(name)),
                sex=demographics.get(name, (None, None))[0],
                age_years=demographics.get(name, (None, None))[1],
            )
            for name, path in images.items()
        )
        counts = {
            "images without lung masks": sum(not record.masks for record in records),
            "masks without an image": len((left.keys() | right.keys() | merged.keys()) - images.keys()),
            "clinical readings that do not begin with sex and age: what is missing stays unknown": sum(
                None in demographics[name] for name in demographics.keys() & images.keys()
            ),
        }
        return Listing(
            records=records,
            patient_grouping="image",
            warnings=count_warnings(self.info, records) + number_warnings(self.info, counts),
        )


def parse_demographics(lines: list[str]) -> tuple[Sex | None, float | None]:
    """Parse sex and age in years, of lines that say one of these and nothing else."""
    sexes = [match[1] for line in lines if (match := _SEX.fullmatch(line))]
    ages = [int(match[1]) for line in lines if (match := _AGE.fullmatch(line))]
    known: dict[str, Sex] = {"F": "F", "M": "M", "O": "O"}
    return known[sexes[0]] if sexes else None, float(ages[0]) if ages and ages[0] <= 120 else None


def _first_lines(path: Path) -> list[str]:
    with path.open("rb") as file:
        return [file.readline(_MAX_LINE_BYTES).decode("utf-8", errors="replace") for _ in range(_NUM_LINES)]


def _masks(left: str | None, right: str | None, merged: str | None) -> dict[str, MaskFiles]:
    if left is not None and right is not None:
        return {
            "left_lung": MaskFiles(files=(File(left),)),
            "right_lung": MaskFiles(files=(File(right),)),
            "lungs": MaskFiles(files=(File(left), File(right))),
        }
    return {"lungs": MaskFiles(files=(File(merged),))} if merged is not None else {}


SOURCE = MontgomerySource()
