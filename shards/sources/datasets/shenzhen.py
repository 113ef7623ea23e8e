"""Shenzhen Hospital X-ray Set: tuberculosis, from Shenzhen No. 3 People's Hospital.

Jaeger S. et al., "Two public chest X-ray datasets for computer-aided screening of pulmonary diseases", Quant. Imaging
Med. Surg. 4(6), 2014. From the US National Library of Medicine, free for research with citation:
https://data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets/Shenzhen-Hospital-CXR-Set/
Lung masks of 566 of the images are another set: https://www.kaggle.com/datasets/yoctoman/shcxr-lung-mask

Layout:
    CXR_png/CHNCXR_0001_0.png
    ClinicalReadings/CHNCXR_0001_0.txt (optional: sex, age)
    ANY_FOLDER/CHNCXR_0001_0_mask.png (optional: lungs)

- The label is the last character of the name: 1 tuberculosis, 0 normal. Numbers 1 to 326 are all normal and 327 to 662
  all tuberculosis: an order or a split by number leaks the label.
- Clinical readings are free text. Sex and age are taken where the first line is nothing else (`male 45yrs`, with
  variants in spaces, commas, case and unit, and `femal`; without a unit the age is unknown); the rest is never read.
  Kaggle's shenzhen_metadata.csv is somebody's reading of them and differs in places, so it is never read.
- Images are 8 bit of about 3,000 pixels, most with a palette and some RGB, all grey.
- One image a patient as far as is known: patients are images.
- Kaggle's joint set with Montgomery has copies of images in `test/` and masks in `masks/`: images are only looked for
  in `CXR_png`.
"""

import re
from pathlib import Path

from shards.core.records import File, MaskFiles, Record, Sex
from shards.sources.base import Listing, SourceInfo, layout_in
from shards.sources.files import index_files, list_files
from shards.sources.listing import count_warnings, no_images, number_warnings

_LAYOUT = layout_in(__doc__)
_DEMOGRAPHICS = re.compile(
    r"(?P<sex>female?|male)[ ,]*(?P<age>\d{1,3})(?: ?(?P<unit>years|year|yrs|yr|months|month|days|day))?",
    re.IGNORECASE,
)
_PER_YEAR = {"y": 1, "m": 12, "d": 365.25}
_MAX_FIRST_LINE_BYTES = 200


class ShenzhenSource:
    """Images by name, labels in the name."""

    info = SourceInfo(
        name="shenzhen",
        title="Shenzhen Hospital X-ray Set",
        modality="chest X-ray",
        num_images=662,
        num_patients=None,
        tasks=("classification", "segmentation"),
        licence="NLM: free for research, cite",
        is_redistributable=False,
        citation="Jaeger et al., Two public chest X-ray datasets for computer-aided screening of pulmonary diseases, "
        "Quant. Imaging Med. Surg. 4(6), 2014",
        pages=(
            "https://data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets/Shenzhen-Hospital-CXR-Set/",
            "https://www.kaggle.com/datasets/yoctoman/shcxr-lung-mask",
        ),
        layout=_LAYOUT,
    )

    def read(self, root: Path) -> Listing:
        """List all images in folders named CXR_png.

        Raises:
            SourceError: there are none, or two of one name.
        """
        paths = list_files(root)
        images = index_files(root, paths, r"CXR_png/(?P<name>CHNCXR_\d{4}_[01])\.png")
        if not images:
            raise no_images(self.info, root)
        masks = index_files(root, paths, r"(?P<name>CHNCXR_\d{4}_[01])_mask\.png")
        readings = index_files(root, paths, r"ClinicalReadings/(?P<name>CHNCXR_\d{4}_[01])\.txt")
        demographics = {name: parse_demographics(_first_line(root / path)) for name, path in readings.items()}
        records = tuple(
            Record(
                source_id=name,
                image=File(path),
                patient=f"shenzhen/{name}",
                view="PA",
                labels={"Tuberculosis": int(name[-1])},
                masks={"lungs": MaskFiles(files=(File(masks[name]),))} if name in masks else {},
                sex=demographics.get(name, (None, None))[0],
                age_years=demographics.get(name, (None, None))[1],
            )
            for name, path in images.items()
        )
        counts = {
            "masks without an image": len(masks.keys() - images.keys()),
            "clinical readings whose first line is not sex and age: what is missing stays unknown": sum(
                None in demographics[name] for name in demographics.keys() & images.keys()
            ),
        }
        return Listing(
            records=records,
            patient_grouping="image",
            warnings=count_warnings(self.info, records) + number_warnings(self.info, counts),
        )


def parse_demographics(line: str) -> tuple[Sex | None, float | None]:
    """Parse sex and age in years of a line that says these and nothing else; otherwise neither."""
    match = _DEMOGRAPHICS.fullmatch(line.strip())
    if match is None:
        return None, None
    age = int(match["age"]) / _PER_YEAR[match["unit"][0].lower()] if match["unit"] else None
    return "M" if match["sex"].lower() == "male" else "F", age if age is not None and age <= 120 else None


def _first_line(path: Path) -> str:
    with path.open("rb") as file:
        return file.readline(_MAX_FIRST_LINE_BYTES).decode("utf-8", errors="replace")


SOURCE = ShenzhenSource()
