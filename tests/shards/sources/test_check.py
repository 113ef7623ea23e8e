"""The battery notices every fault that a source may have."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from shards.core.errors import SourceError, UserError
from shards.core.records import Box, File, MaskFiles, MaskPolygons, MaskRuns, Record
from shards.sources.base import Listing, SourceInfo
from shards.sources.check import ContractError, check_source
from tests.shards.sources.trees import write_files

INFO = SourceInfo(
    name="zoo",
    title="Zoo",
    modality="chest X-ray",
    num_images=None,
    num_patients=None,
    tasks=("classification",),
    licence="free",
    is_redistributable=True,
    citation="A. Keeper, Zoo, 2026",
    pages=("https://example.org",),
    layout="*.png",
    shares_images_with=("farm",),
)
ONE = Record(
    source_id="one",
    image=File("a/b/one.png"),
    patient="zoo/1",
    labels={"ill": 1},
    masks={"heart": MaskFiles(files=(File("m.png"),))},
)
TWO = Record(source_id="two", image=File("two.png"), patient="farm/2", labels={"ill": None}, split="train")
RING_TO_NOWHERE = ((0.0, 0.0), (1.0, math.nan), (1.0, 0.0))


@dataclass
class Source:
    listing: Listing
    info: SourceInfo = INFO

    def read(self, root: Path) -> Listing:
        if not any(root.iterdir()):
            raise SourceError(f"{root}: no images")
        return self.listing


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_files(tmp_path / "root", ["a/b/one.png", "two.png", "m.png"])
    write_files(tmp_path, ["outside/one.png"])
    return tmp_path / "root"


def source(*records: Record, **facts: object) -> Source:
    return Source(replace(Listing(records=records, patient_grouping="patient"), **facts))


def test_a_source_without_fault_passes(root: Path) -> None:
    check_source(source(ONE, TWO), root)
    gone = replace(TWO, image=File("gone.png"), known_defect="never published")
    check_source(source(ONE, gone, shares_images_with=("farm",)), root)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda one: replace(one, source_id="two"), "the same source_id"),
        (lambda one: replace(one, image=TWO.image), "the same image"),
        (lambda one: replace(one, source_id="a\nb"), "must be printable"),
        (lambda one: replace(one, image=File("none.png")), "no file none.png"),
        (lambda one: replace(one, image=File("a/b")), "no file a/b"),
        (lambda one: replace(one, masks={"heart": MaskFiles(files=(File("none.png"),))}), "no file none.png"),
        (lambda one: replace(one, image=File("a/../two.png")), "the path leaves the folder"),
        (lambda one: replace(one, image=File("/etc/hostname"), known_defect="x"), "the path leaves the folder"),
        (lambda one: replace(one, image=File("two.png", 3)), "hashes are made by `register`"),
        (lambda one: replace(one, patient=""), "needs a patient"),
        (lambda one: replace(one, patient="1"), "must begin with zoo or farm"),
        (lambda one: replace(one, study=""), "an unknown study is None"),
        (lambda one: replace(one, view="front/side"), "a view is a short code"),
        (lambda one: replace(one, labels={}), "every record has the same labels"),
        (lambda one: replace(one, labels={"ill": 2}), "labels are 1, 0, -1 or None"),
        (lambda one: replace(one, split="dev"), "split is train, val, test or None"),
        (lambda one: replace(one, patient=TWO.patient, split="test"), "in several official splits"),
        (lambda one: replace(one, sex="m"), "sex is F, M, O or None"),
        (lambda one: replace(one, age_years=411.0), "an age that cannot be"),
        (lambda one: replace(one, masks={"left lung": MaskPolygons(())}), "structures have no dot"),
        (lambda one: replace(one, masks={"heart": MaskFiles(files=(), low=9, high=3)}), "0 <= low <= high"),
        (lambda one: replace(one, masks={"heart": MaskRuns((((12, 5),),), 4, 4)}), "ends outside"),
        (lambda one: replace(one, masks={"heart": MaskPolygons((((0.0, 0.0), (1.0, 1.0)),))}), "has 3 points"),
        (lambda one: replace(one, masks={"heart": MaskPolygons((RING_TO_NOWHERE,))}), "points that are no numbers"),
        (lambda one: replace(one, boxes=(Box(label="ill", row0=1, col0=1, row1=1, col1=5),)), "has no area"),
        (lambda one: replace(one, boxes=(Box(label="ill", row0=1, col0=1, row1=2, col1=math.inf),)), "has no area"),
        (lambda one: replace(one, boxes=(Box(label="well", row0=1, col0=1, row1=2, col1=5),)), "none of the labels"),
        (lambda one: replace(one, landmarks={"tip": (math.nan, 1.0)}), "landmark tip is nowhere"),
        (lambda one: replace(one, landmarks={"a.tip": (0.0, 1.0)}), "landmarks have no dot"),
        (lambda one: replace(one, spacing_mm=(0.0, 0.1)), "a spacing is above 0 mm"),
    ],
)
def test_a_fault_of_a_record_is_named(fault: Callable[[Record], Record], words: str, root: Path) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        check_source(source(TWO, fault(ONE)), root)


class Careless(Source):
    def read(self, root: Path) -> Listing:
        return self.listing


def test_a_few_images_of_one_patient_are_known_where_patients_are_not(root: Path) -> None:
    """Two images of one patient are less than half of five, and no less than half of four."""
    write_files(root, [f"{number}.png" for number in range(3)])
    pair = (ONE, replace(TWO, patient=ONE.patient, split=None))
    others = [
        Record(source_id=str(number), image=File(f"{number}.png"), patient=f"zoo/alone {number}", labels={"ill": 0})
        for number in range(3)
    ]
    check_source(source(*pair, *others, patient_grouping="image"), root)
    with pytest.raises(ContractError, match="most images share their patient"):
        check_source(source(*pair, *others[:2], patient_grouping="image"), root)


def test_a_fault_of_the_listing_is_named(root: Path) -> None:
    with pytest.raises(ContractError, match="no records"):
        check_source(source(), root)
    with pytest.raises(ContractError, match="a folder without images must raise SourceError"):
        check_source(Careless(Listing(records=(ONE,), patient_grouping="patient")), root)
    with pytest.raises(ContractError, match="most images share their patient"):
        check_source(source(ONE, replace(TWO, patient=ONE.patient, split=None), patient_grouping="image"), root)
    with pytest.raises(ContractError, match="shares images with a dataset that info does not name"):
        check_source(source(ONE, shares_images_with=("circus",)), root)
    with pytest.raises(ContractError, match="a label needs a plain name"):
        check_source(source(replace(ONE, labels={"ill;": 1})), root)
    with pytest.raises(ContractError, match=r"info\.licence is empty"):
        check_source(Source(Listing(records=(ONE,), patient_grouping="patient"), replace(INFO, licence="")), root)


def test_two_readings_that_differ_are_noticed(root: Path) -> None:
    class Forgetful(Source):
        def read(self, root: Path) -> Listing:
            found = super().read(root)
            self.listing = replace(found, warnings=("again",))
            return found

    with pytest.raises(ContractError, match="two readings of one folder differ"):
        check_source(Forgetful(Listing(records=(ONE,), patient_grouping="patient")), root)


@pytest.mark.parametrize("place", ["a", "a/b", "a/b/one.png"])
def test_a_link_that_leads_out_is_noticed_at_whatever_depth_and_one_that_stays_inside_is_fine(
    place: str, root: Path
) -> None:
    (root / place).rename(root / "elsewhere")
    (root / place).symlink_to(root / "elsewhere")
    check_source(source(TWO, ONE), root)
    (root / place).unlink()
    (root / "elsewhere").rename(root.parent / "elsewhere")
    (root / place).symlink_to(root.parent / "elsewhere")
    for path in ("a/b/one.png", "a//b//one.png", "./a/./b/one.png"):
        with pytest.raises(SourceError, match="record one: a symbolic link leads out"):
            check_source(source(TWO, replace(ONE, image=File(path))), root)
