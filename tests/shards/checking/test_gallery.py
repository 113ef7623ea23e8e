"""The gallery of a set: every image with its key, its copies beside it, and nothing that names anybody."""

import html
import re
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.__main__ import build_parser
from shards.build.contact_sheet import colour_of
from shards.build.stage import build_shards
from shards.checking.gallery import PAGE_SIZE, THUMBNAIL_PX, render_gallery
from shards.cli import run_command
from shards.decode.masks import MASK_SIZE
from shards.format.exclusion import Exclusion
from shards.quality.report import QUALITY
from shards.reading.reader import ShardIndex
from tests.ace.report.test_browser import probe
from tests.support.datasets import (
    NO_CHECKS,
    TEST_KEY,
    Here,
    folder_params,
    grid_params,
    shard_params,
    smooth_image,
    write_csv,
)

NUM_IMAGES = 230
CHECKS = NO_CHECKS | {"exact_copies": {"action": "quarantine"}}
COPY, EMPTY, DRAWN = "Doe_Jane/copy.png", "Doe_Jane/empty.png", "Doe_Jane/000.png"


def write_images(root: Path) -> None:
    """Images of as many patients: one is a copy of another, one is empty, one has masks, a box and a landmark."""
    (root / "images/Doe_Jane").mkdir(parents=True)
    rows = []
    for number in range(NUM_IMAGES):
        name = f"Doe_Jane/{number:03}.png"
        Image.fromarray(smooth_image(60, 60, number)).save(root / "images" / name)
        labels = (1, -1) if name == DRAWN else (0, "")
        rows.append((name, f"Roe {number}", *labels, "", "", "", "", "", "", ""))
    (root / "images" / EMPTY).write_bytes(b"")
    (root / "images" / COPY).write_bytes((root / "images/Doe_Jane/005.png").read_bytes())
    rows += [(name, "Roe", 0, "", "", "", "", "", "", "", "") for name in (COPY, EMPTY)]
    for name, side in (("heart", 60), ("lungs", 61)):
        Image.fromarray(np.arange(side * side).reshape(side, side) < 600).save(root / "images" / f"{name}.png")
    drawn = ("heart.png", "lungs.png", "0", "10 10 50 50", "20 20", 60, 60)
    rows[0] = (*rows[0][:4], *drawn)
    marks = ("mask:heart", "mask:lungs", "mask:mass", "box:mass", "landmark:carina", "height", "width")
    write_csv(root / "labels.csv", ("path", "patient", "mass", "bold", *marks), rows)


def key_of(name: str) -> str:
    return TEST_KEY.pseudonym("source", name)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the set own-b000."""
    root = tmp_path_factory.mktemp("gallery")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_SCRATCH", str(root / "scratch"))
        patch.delenv("ACE_ID_KEY_FILE", raising=False)
        write_images(root)
        source = folder_params(root / "images", root / "manifest.jsonl", root / "labels.csv")
        params = shard_params(quality=CHECKS, max_quarantined_fraction=0.5)
        build_shards("own-b000", source, grid_params(), params, root / "shards/own-b000", execution=Here())
    return root / "shards"


@pytest.fixture(scope="module")
def page(shards: Path) -> str:
    return gallery(shards)


def gallery(shards: Path, max_images: int = 1000) -> str:
    return render_gallery(ShardIndex.open(shards / "own-b000"), shards / "own-b000", max_images)


def card(page: str, name: str) -> str:
    """What the page says of one image, tags included."""
    (found,) = (text for text in re.findall(r"<article>(.*?)</article>", page, re.DOTALL) if key_of(name) in text)
    return found


def test_every_image_is_there_once_by_its_key(page: str) -> None:
    keys = re.findall(r"<div><code>([0-9a-f]{16})</code></div>", page)
    names = [f"Doe_Jane/{number:03}.png" for number in range(NUM_IMAGES)]
    assert sorted(keys) == sorted(map(key_of, [*names, COPY, EMPTY]))
    assert f"{NUM_IMAGES + 2} images ({NUM_IMAGES} kept, 0 suspect, 2 quarantined; 1 groups of copies)" in page


def test_an_excluded_image_is_not_there(shards: Path) -> None:
    index = ShardIndex.open(shards / "own-b000")
    key = key_of("Doe_Jane/001.png")
    index = replace(index, excluded=Exclusion(frozenset([key])))
    page = render_gallery(index, shards / "own-b000", 1000)
    assert key not in page
    assert f"{NUM_IMAGES + 1} images ({NUM_IMAGES - 1} kept," in page


def test_labels_structures_and_losses_are_told(page: str) -> None:
    text = html.unescape(re.sub(r"<[^>]*>", "|", card(page, DRAWN)))
    assert "|bold?, mass|" in text
    for shown in ("|heart|", "|(mass)|", "|box mass|", "|landmarks: 1|", f"|lost: mask lungs: {MASK_SIZE}|"):
        assert shown in text
    assert "#{:02x}{:02x}{:02x}".format(*colour_of("heart")) in card(page, DRAWN)
    assert 'class="over"' in card(page, DRAWN)
    assert 'class="over"' not in card(page, "Doe_Jane/001.png")


def test_copies_stand_in_one_frame_and_what_is_not_in_the_shards_has_a_reason_and_no_picture(page: str) -> None:
    (frame,) = re.findall(r'<div class="group">(.*?)</div></div>\n', page, re.DOTALL)
    assert {name for name in (COPY, "Doe_Jane/005.png") if key_of(name) in frame} == {COPY, "Doe_Jane/005.png"}
    assert frame.count("<article>") == 2
    assert "quarantined: the same file as another image" in frame
    assert "quarantined: an empty file" in card(page, EMPTY)
    assert "<img" not in card(page, EMPTY)


def test_pages_have_a_hundred_images_at_most_and_the_first_is_the_one_that_shows(page: str) -> None:
    pages = re.findall(r'<section class="page" id="page-(\d)">(.*?)</section>', page, re.DOTALL)
    assert [number for number, _ in pages] == ["3", "2", "1"]
    sizes = [text.count("<article>") for _, text in pages]
    assert sum(sizes) == NUM_IMAGES + 2
    assert max(sizes) == PAGE_SIZE
    assert key_of(COPY) in pages[-1][1]
    assert key_of(EMPTY) in pages[-1][1]


def test_nothing_names_a_patient_a_file_or_a_folder(page: str, shards: Path) -> None:
    for secret in ("Doe_Jane", "Roe ", ".png", str(shards), TEST_KEY.pseudonym("patient", "Roe")):
        assert secret not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "<script" not in page


def test_a_large_set_is_thinned_out_but_for_what_is_flagged(shards: Path) -> None:
    page = gallery(shards, max_images=23)
    assert page.count("<article>") == 23
    assert "23 of them on this page" in page
    for name in (COPY, EMPTY, "Doe_Jane/005.png"):
        assert card(page, name)
    assert gallery(shards, max_images=2).count("<article>") == 2


def test_the_command_writes_a_private_file_and_says_so(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "own.html"
    command = ["gallery", "--batch", "own-b000", "--shards", str(shards), "--out", str(out)]
    assert run_command(build_parser(), command) == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert "only you can read (mode 600): it may hold pictures of patients" in capsys.readouterr().err
    assert out.stat().st_size < NUM_IMAGES * THUMBNAIL_PX**2
    assert run_command(build_parser(), [*command[:-1], str(tmp_path / "own.pdf")]) == 2
    assert "expected a file name that ends in .html" in capsys.readouterr().err


def test_a_place_from_which_git_would_take_pictures_is_refused(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("/data/\n")
    (tmp_path / "data").mkdir()
    command = ["gallery", "--batch", "own-b000", "--shards", str(shards), "--out"]
    assert run_command(build_parser(), [*command, str(tmp_path / "own.html")]) == 2
    assert "choose a path outside it, or below data/" in capsys.readouterr().err
    assert not (tmp_path / "own.html").exists()
    assert run_command(build_parser(), [*command, str(tmp_path / "data/own.html")]) == 0


def test_a_set_without_a_quality_report_is_refused(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (shards / "own-b000").iterdir():
        (tmp_path / "own-b000").mkdir(exist_ok=True)
        (tmp_path / "own-b000" / path.name).write_bytes(b"" if path.name == QUALITY else path.read_bytes())
    command = ["gallery", "--batch", "own-b000", "--shards", str(tmp_path), "--out", str(tmp_path / "a.html")]
    assert run_command(build_parser(), command) == 2
    assert f"{QUALITY}: found no quality report" in capsys.readouterr().err
    assert not (tmp_path / "a.html").exists()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_draws_every_picture_without_a_network(page: str, tmp_path: Path, width: int) -> None:
    num_pictures, problems = probe(page.replace('loading="lazy" ', ""), tmp_path, width)
    assert problems == "[]"
    assert num_pictures == page.count("<img ") == NUM_IMAGES + 1
