"""DRIVE: vessels in fundus photographs.

Staal J. et al., "Ridge-based vessel segmentation in color images of the retina", IEEE Trans. Med. Imaging 23(4), 2004:
https://drive.grand-challenge.org (registration; research).

Layout:
    training/images/21_training.tif
    training/1st_manual/21_manual1.gif (vessels)
    training/mask/21_training_mask.gif (field of view)
    test/images/01_test.tif, test/mask/01_test_mask.gif
    test/1st_manual/01_manual1.gif, test/2nd_manual/01_manual2.gif (in older archives)

- 20 training images (21 to 40) and 20 test images (01 to 20), one a patient; TIFF, 565 x 584 pixels.
- Two kinds of masks have much the same names: `mask/` is the camera's field of view, `1st_manual/` the vessels. They
  are taken by folder and name together, as `field_of_view` and `vessels`.
- The archive of grand-challenge.org has no vessels of the test images; the older one has, and a second observer's
  (`vessels_second_observer`).
- The masks are GIF files (copies have PNG) of two grey levels: 0 and 255, but 3 and 253 in `2nd_manual`. Inside is the
  brighter one.
"""

from pathlib import Path

from shards.core.records import File, Mask, MaskFiles, Record, Split
from shards.sources.base import Listing, SourceInfo, layout_in
from shards.sources.files import index_files, list_files
from shards.sources.listing import count_warnings, no_images, number_warnings

_LAYOUT = layout_in(__doc__)
PARTS: dict[str, Split] = {"training": "train", "test": "test"}
_MASKS = {
    "vessels": r"1st_manual/(?P<name>\d\d)_manual1",
    "vessels_second_observer": r"2nd_manual/(?P<name>\d\d)_manual2",
    "field_of_view": r"mask/(?P<name>\d\d)_(?:training|test)_mask",
}


class DriveSource:
    """Images by name; masks by name and folder."""

    info = SourceInfo(
        name="drive",
        title="DRIVE, Digital Retinal Images for Vessel Extraction",
        modality="fundus photograph",
        num_images=40,
        num_patients=40,
        tasks=("segmentation",),
        licence="research, registration",
        is_redistributable=False,
        citation="Staal et al., Ridge-based vessel segmentation in color images of the retina, IEEE Trans. Med. "
        "Imaging 23(4), 2004",
        pages=("https://drive.grand-challenge.org",),
        layout=_LAYOUT,
    )

    def read(self, root: Path) -> Listing:
        """List all images in `training/images` and `test/images`.

        Raises:
            SourceError: there are none, or two of one name.
        """
        paths = list_files(root)
        images = {
            part: index_files(root, paths, rf"{part}/images/(?P<name>\d\d)_{part}\.(?:tiff?|png)") for part in PARTS
        }
        if not any(images.values()):
            raise no_images(self.info, root)
        masks = {
            part: {
                structure: index_files(root, paths, rf"{part}/{pattern}\.(?:gif|png|tiff?)")
                for structure, pattern in _MASKS.items()
            }
            for part in PARTS
        }
        records = tuple(
            Record(
                source_id=name,
                image=File(path),
                patient=f"drive/{name}",
                masks=_masks(masks[part], name),
                split=PARTS[part],
            )
            for part, found in images.items()
            for name, path in found.items()
        )
        counts = {
            f"images of {split} without {structure.replace('_', ' ')}": sum(
                structure not in record.masks for record in records if record.split == split
            )
            for split in PARTS.values()
            for structure in ("vessels", "field_of_view")
        } | {
            "masks without an image": sum(
                len(found.keys() - images[part].keys()) for part in PARTS for found in masks[part].values()
            )
        }
        return Listing(
            records=records,
            patient_grouping="patient",
            warnings=count_warnings(self.info, records) + number_warnings(self.info, counts),
        )


def _masks(found: dict[str, dict[str, str]], name: str) -> dict[str, Mask]:
    return {structure: MaskFiles(files=(File(paths[name]),)) for structure, paths in found.items() if name in paths}


SOURCE = DriveSource()
