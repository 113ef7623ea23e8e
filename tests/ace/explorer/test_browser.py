"""The explorer in a real browser without a network, by pointer and keys: what it shows is what Python finds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.oracles.explorer import PageNumbers
from tests.support.chromium import Page, chromium

pytestmark = pytest.mark.browser
SIDES = {"token": 1, "composed": 2}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(browser: Page, explorer: Path) -> Iterator[Page]:
    """The explorer just opened; a test in which anything went wrong in the browser fails."""
    browser.problems.clear()
    browser.open(explorer)
    yield browser
    assert browser.problems == []


@pytest.fixture(scope="module")
def numbers(explorer: Path) -> PageNumbers:
    return PageNumbers(explorer)


def place(page: Page) -> tuple[int, int]:
    shown = page.script("({...document.getElementById('query').dataset})")
    return int(shown["row"]), int(shown["col"])


def tiles(page: Page) -> list[dict[str, Any]]:
    """What each picture of the gallery shows: its data, its caption, whether it is hidden or the best."""
    return page.script(
        "[...document.querySelectorAll('#gallery > li')].map(li => ({...li.dataset, text: li.innerText, "
        "hidden: li.hidden, best: li.classList.contains('best')}))"
    )


def choose(page: Page, group: str, value: str | int) -> None:
    page.click(f"#{group} input[value='{value}'] + span")


def check_matches(
    page: Page, numbers: PageNumbers, *, encoder: int = 0, side: int = 1, patient: int = 0, canvas: int | None = None
) -> None:
    """Every picture shows the match that Python finds from the same numbers, to the last bit of its score."""
    row, col = place(page)
    size = numbers.sums(encoder, side).shape[1]
    query = (patient, row, col) if canvas is None else (canvas, row, size - 1 - col)
    shown, best = tiles(page), []
    for other, tile in enumerate(shown):
        assert tile["hidden"] == (other == patient and canvas is None)
        if tile["hidden"]:
            continue
        found = numbers.match(encoder, side, query, other)
        assert (int(tile["row"]), int(tile["col"])) == (found.row, found.col)
        assert float(tile["score"]) == found.score
        assert float(tile["margin"]) == found.margin
        assert f"cosine {found.score:.2f}".replace("-", "−") in tile["text"]
        best.append((found.score, -other))
    (marked,) = [other for other, tile in enumerate(shown) if tile["best"] and not tile["hidden"]]
    assert marked == -max(best)[1]
    assert f"patient {marked + 1}" in page.script("document.getElementById('headline').textContent")


@pytest.mark.slow
@pytest.mark.parametrize("patch", SIDES)
@pytest.mark.parametrize("encoder", [0, 2])
def test_the_match_under_the_pointer_is_pythons_arg_max(
    page: Page, numbers: PageNumbers, patch: str, encoder: int
) -> None:
    choose(page, "encoders", encoder)
    choose(page, "patches", patch)
    seen = set()
    for at in ((0.3, 0.3), (0.62, 0.57), (0.05, 0.95), (0.5, 0.52)):
        page.move("#query", at)
        seen.add(place(page))
        check_matches(page, numbers, encoder=encoder, side=SIDES[patch])
    assert len(seen) == 4


def test_the_patch_lies_under_the_pointer(page: Page) -> None:
    page.move("#query", (0.4, 0.7))
    box = "(({left, top, width, height}) => [left + width / 2, top + height / 2])"
    centre, query = (
        page.script(f"{box}(document.querySelector('{selector}').getBoundingClientRect())")
        for selector in ("#query i.patch", "#query")
    )
    x, y = page.middle_of("#query", (0.4, 0.7))
    side = page.script("document.getElementById('query').clientWidth")
    assert abs(centre[0] - x) < side / 25
    assert abs(centre[1] - y) < side / 25
    assert query != centre


def test_arrow_keys_move_the_patch_by_one_location_and_with_shift_by_more(page: Page, numbers: PageNumbers) -> None:
    page.click("#query", (0.5, 0.5))
    row, col = place(page)
    for key, expected in (
        ("ArrowUp", (row - 1, col)),
        ("ArrowRight", (row - 1, col + 1)),
        ("ArrowDown", (row, col + 1)),
        ("ArrowLeft", (row, col)),
    ):
        page.key(key)
        assert place(page) == expected
        check_matches(page, numbers)
    page.key("ArrowLeft", with_shift=True)
    assert place(page) == (row, col - 4)
    for _ in range(20):
        page.key("ArrowUp")
    assert place(page) == (0, col - 4)


def test_a_click_pins_the_patch_and_escape_frees_it(page: Page) -> None:
    page.click("#query", (0.3, 0.3))
    pinned = place(page)
    page.move("#query", (0.7, 0.6))
    assert place(page) == pinned
    page.key("Escape")
    page.move("#query", (0.7, 0.62))
    assert place(page) != pinned


def test_another_picture_is_looked_from_where_the_match_was(page: Page, numbers: PageNumbers) -> None:
    page.move("#query", (0.62, 0.57))
    match = tiles(page)[3]
    page.click("#gallery li:nth-child(4) button")
    assert place(page) == (int(match["row"]), int(match["col"]))
    assert page.script("document.getElementById('patient').value") == "3"
    check_matches(page, numbers, patient=3)


def test_mirrored_tokens_are_looked_for_where_there_are_some(page: Page, numbers: PageNumbers) -> None:
    page.click("#query", (0.5, 0.3))
    page.click("#mirrored + span")
    check_matches(page, numbers, canvas=numbers.num_patients)
    page.script(
        "document.getElementById('patient').value = 5, "
        "document.getElementById('patient').dispatchEvent(new Event('change'))"
    )
    page.settle()
    assert page.script("document.getElementById('mirrored').disabled")
    check_matches(page, numbers, patient=5)


def test_the_error_is_told_where_a_landmark_is_near(page: Page, numbers: PageNumbers) -> None:
    data = numbers.data
    name, _, row, col = data["patients"][0]["landmarks"][0]
    page.click("#query", (row / data["canvas_px"], col / data["canvas_px"]))
    here = [data["positions"][index] for index in place(page)]
    assert f"near {name}" in page.script("document.getElementById('answer').textContent")
    found = numbers.match(0, 1, (0, *place(page)), 2)
    at = next(own for own in data["patients"][2]["landmarks"] if own[0] == name)
    wanted = [at[2] + here[0] - row, at[3] + here[1] - col]
    match = [data["positions"][found.row], data["positions"][found.col]]
    error = sum((a - b) ** 2 for a, b in zip(match, wanted, strict=True)) ** 0.5 * 1024 / data["canvas_px"]
    shown = next(line for line in tiles(page)[2]["text"].splitlines() if line.startswith("error"))
    assert shown == f"error {error:.0f} px"
    page.move("#query", (0.02, 0.02))
    page.key("Escape")
    page.move("#query", (0.03, 0.02))
    assert "error" not in tiles(page)[2]["text"]


def test_a_drawn_square_is_looked_for_as_the_sum_of_its_tokens(page: Page, numbers: PageNumbers) -> None:
    choose(page, "patches", "remove")
    page.move("#query", (0.3, 0.3))
    page.press("#query", (0.3, 0.3), is_down=True)
    page.move("#query", (0.68, 0.66), held=True)
    page.press("#query", (0.68, 0.66), is_down=False)
    assert page.script("document.getElementById('query').dataset.side") == "3"
    check_matches(page, numbers, side=3)
    assert "Arithmetic" in page.script("document.getElementById('note').textContent")
    page.script("document.getElementById('query').focus()")
    page.key("+")
    check_matches(page, numbers, side=4)


def test_a_numbered_square_shows_what_the_encoder_answered(page: Page, numbers: PageNumbers) -> None:
    choose(page, "patches", "remove")
    page.click("#squares button:nth-child(2)")
    cosines = numbers.data["encoders"][0]["removed"][0][1]
    shown = tiles(page)
    assert [float(tile["score"]) for tile in shown] == cosines
    assert [tile["best"] for tile in shown].index(True) == cosines.index(max(cosines))
    assert not any(tile["hidden"] for tile in shown)
    assert "The encoder was run" in page.script("document.getElementById('answer').textContent")


def test_every_colouring_draws_and_none_leaves_the_pictures(page: Page) -> None:
    drawn = "[...document.querySelectorAll('#gallery canvas')].map(canvas => canvas.toDataURL().length)"
    page.move("#query", (0.5, 0.4))
    assert min(page.script(drawn)[1:]) > 500
    choose(page, "colours", "components")
    assert min(page.script(drawn)) > 500
    choose(page, "colours", "none")
    assert set(page.script(drawn)) == {len("data:,")}


@pytest.mark.parametrize("width", [360, 768, 1400])
@pytest.mark.parametrize("is_dark", [False, True])
def test_no_width_scrolls_sideways(browser: Page, explorer: Path, width: int, is_dark: bool) -> None:
    browser.problems.clear()
    browser.open(explorer, width=width, height=780, is_dark=is_dark)
    browser.script("document.querySelector('details').open = true")
    for patch in ("token", "remove"):
        choose(browser, "patches", patch)
        assert browser.script("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    light = browser.script("getComputedStyle(document.body).backgroundColor") == "rgb(251, 250, 247)"
    assert light != is_dark
    assert browser.problems == []


def test_everything_is_reached_by_keys_and_has_a_name(page: Page) -> None:
    page.script("document.activeElement.blur()")
    reached = []
    for _ in range(12):
        page.key("Tab")
        reached.append(
            page.script("document.activeElement.id || document.activeElement.name || document.activeElement.tagName")
        )
    assert reached[:5] == ["patient", "encoder", "patch", "colour", "mirrored"]
    assert "query" in reached
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    roles = [(node["role"]["value"], node.get("name", {}).get("value")) for node in nodes if not node["ignored"]]
    for role, name in roles:
        if role in ("radio", "checkbox", "button", "combobox", "application", "image"):
            assert name, role
    assert any(role == "application" and name.startswith("Patient 1, row") for role, name in roles)


def test_a_screen_reader_is_told_once_the_patch_rests(page: Page) -> None:
    assert page.script("document.getElementById('said').getAttribute('role')") == "status"
    page.click("#query", (0.4, 0.4))
    page.script("new Promise(done => setTimeout(done, 700))")
    assert page.script("document.getElementById('said').textContent").startswith("Best match: patient")
