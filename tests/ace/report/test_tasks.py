"""The section of downstream tasks: every number is the file's, in the place of its encoder and its use."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ace.__main__ import build_parser
from ace.report.page import write_report
from ace.report.tables import ALIKE, BETTER, WORSE
from ace.report.task_tables import WORDS, amount_words, task_table, words_of
from ace.report.tasks import read_task, task_of_two
from shards.cli import run_command
from shards.core.errors import ConfigError
from tests.ace.evaluation.drawn_project import EVALUATE
from tests.ace.report.test_browser import probe
from tests.ace.report.test_page import PARAMS, Elements, text_of
from tests.support.checkout import ROOT

ENCODERS = ("trained", "untrained", "imagenet")
MEASURED = {"batch": "phantom-b000", "split": "test", "num_images": 99, "num_patients": 66, "num_seeds": 3}
MEASURED |= {"num_reads": 1, "accept_shared_images": False}
MEASURED |= {"num_training_images": {"100pct": [141, 141], "2_5pct": [3, 5], "5shot": [27, 27]}}
USES = [("full", "100pct"), ("linear", "100pct"), ("linear", "2_5pct"), ("knn", "5shot")]
NOT_MEASURED = {"value": None, "low": None, "high": None, "n": 0, "reason": "nothing to divide by"}
Told = dict[str, Any]


def figure(value: float, low: float, high: float, **more: Any) -> Told:
    return {"value": value, "low": low, "high": high, "n": 66, **more}


def planted(names: tuple[str, ...] = ENCODERS, figures: tuple[str, ...] = ("auroc", "calibration_error")) -> Told:
    """Figures of which no two are alike in three digits; of the first one's gains some lie above 0 and some below."""
    rng = np.random.default_rng(7)
    values = (round(float(value), 5) for value in rng.permutation(np.arange(150, 950)) / 1000)

    def uses(headline_alone: bool) -> Told:
        told: Told = {}
        for method, amount in USES:
            names = figures[:1] if headline_alone else (*figures, f"{figures[0]}/nodule")
            told.setdefault(method, {})[amount] = {name: of_figure(headline_alone) for name in names}
        return told

    def of_figure(is_gain: bool) -> Told:
        value, spread = next(values), next(values) / 2
        if is_gain:
            value -= 0.5
            return figure(value, round(value - spread, 5), round(value + spread, 5))
        return figure(value, round(value - spread, 5), round(value + spread, 5), chance=0.5, num_labels=5)

    told = {name: uses(False) for name in names}
    return {**told, **{f"gain_over_{name}": uses(True) for name in names[1:]}, "measured": dict(MEASURED)}


def write(root: Path, name: str, told: Told) -> Path:
    path = root / f"metrics/finetune/{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told), encoding="utf-8")
    return path


@pytest.fixture
def project(evaluated_project: Path, tmp_path: Path) -> Path:
    """A copy to write figures of tasks into."""
    return Path(shutil.copytree(evaluated_project, tmp_path / "project"))


def page_of(root: Path, *tasks: str) -> str:
    write_report(PARAMS, root / "report.html", root, tasks)
    return (root / "report.html").read_text(encoding="utf-8")


def section_of(page: str) -> str:
    begin = page.index('<section id="tasks">')
    return page[begin : page.index('<section id="idea">', begin)] if 'id="idea"' in page else page[begin:]


class Tables(HTMLParser):
    """The rows of every table as texts of their cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.is_in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.is_in_cell = True
        elif self.is_in_cell and tag in ("small", "span"):
            self.handle_data(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.is_in_cell = False
            self.tables[-1][-1][-1] = " ".join(self.tables[-1][-1][-1].split())

    def handle_data(self, data: str) -> None:
        if self.is_in_cell:
            self.tables[-1][-1][-1] += data


def told_as(told: Told, number: str = "{:.3f}") -> str:
    value, low, high = (number.format(told[end]).replace("-", "−") for end in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def test_every_number_is_that_of_the_file_in_the_row_of_its_encoder_and_the_column_of_its_use(project: Path) -> None:
    told = planted()
    write(project, "phantom", told)
    comparison, every = Tables(section_of(page_of(project, "phantom"))).tables
    groups, heads, *rows = comparison
    assert groups == ["encoder", "trained in full", "linear probe", "nearest neighbours"]
    assert [head.split(" more")[0] for head in heads] == [
        "AUROC 100 % of the training patients",
        "AUROC 100 % of the training patients",
        "AUROC 2.5 % of the training patients",
        "AUROC 5 training images a class",
    ]
    assert all(head.endswith("more is better 66 patients, mean of 5 labels, chance 0.500") for head in heads)
    assert [row[0] for row in rows] == ["trained", "untrained", "ImageNet"]
    signs = {1: "▲", 0: "≈", -1: "▼"}
    for name, (_, *cells) in zip(ENCODERS, rows, strict=True):
        for (method, amount), cell in zip(USES, cells, strict=True):
            expected = told_as(told[name][method][amount]["auroc"])
            if name != "trained":
                gain = told[f"gain_over_{name}"][method][amount]["auroc"]
                expected += f" {signs[(gain['low'] > 0) - (gain['high'] < 0)]} {told_as(gain)}"
            assert cell == expected
    assert every[0] == ["figure", "trained", "untrained", "ImageNet"]
    found = [row[1:] for row in every[1:] if len(row) > 1]
    assert found == [
        [told_as(told[name][method][amount][key]) for name in ENCODERS]
        for method, amount in USES
        for key in ("auroc", "calibration_error", "auroc/nodule")
    ]
    assert [row[0] for row in every[1:] if len(row) == 1] == [
        "trained in full, 100 % of the training patients",
        "linear probe, 100 % of the training patients",
        "linear probe, 2.5 % of the training patients",
        "nearest neighbours, 5 training images a class",
    ]


def test_encoders_whose_figures_are_swapped_change_places_and_their_differences_with_them(project: Path) -> None:
    told = planted()
    write(project, "phantom", told)
    before = Tables(section_of(page_of(project, "phantom"))).tables
    for prefix in ("", "gain_over_"):
        one, other = f"{prefix}untrained", f"{prefix}imagenet"
        told[one], told[other] = told[other], told[one]
    write(project, "phantom", told)
    after = Tables(section_of(page_of(project, "phantom"))).tables
    assert before[0][3][1:] == after[0][4][1:] != after[0][3][1:]
    assert before[0][4][1:] == after[0][3][1:]
    assert before[0][2] == after[0][2]
    for old, new in zip(before[1][1:], after[1][1:], strict=True):
        assert old[2:] == new[:1:-1]


@pytest.mark.parametrize(
    ("headline", "verdicts"),
    [
        ("auroc", (BETTER, WORSE, ALIKE)),
        ("found", (BETTER, WORSE, ALIKE)),
        ("error_px_at_1024", (WORSE, BETTER, ALIKE)),
        ("hd95_mm", (WORSE, BETTER, ALIKE)),
        ("calibration_error", (WORSE, BETTER, ALIKE)),
        ("a_new_figure", (None, None, None)),
    ],
)
def test_errors_and_distances_are_better_where_they_are_smaller(
    tmp_path: Path, headline: str, verdicts: tuple[str | None, ...]
) -> None:
    """By `first − other`: above 0, below 0, and with 0 in its interval."""
    gains = {"up": figure(9, 8, 10), "down": figure(-9, -10, -8), "like": figure(1, -1, 3)}
    told: Told = {name: {"full": {"100pct": {headline: figure(20, 10, 30)}}} for name in ("first", *gains)}
    told |= {f"gain_over_{name}": {"full": {"100pct": {headline: gain}}} for name, gain in gains.items()}
    table = task_table(read_task(write(tmp_path, "a", told | {"measured": MEASURED})), ["first", *gains])
    cells = {name: row[0] for name, row in table.rows.items() if row is not None}
    assert tuple(cells[name].verdict for name in gains) == verdicts
    assert cells["first"].verdict is None
    assert cells["down"].gain is not None
    assert cells["down"].gain[0].startswith("−9"), "the number stays the file's"
    directions = {None: "", BETTER: "more is better", WORSE: "less is better"}
    assert [column.direction for column in table.columns] == [directions[verdicts[0]]]


def test_figures_that_task_kinds_write_are_known_with_their_direction() -> None:
    """By the names that the kinds of tasks give in their code: a new figure needs a name and a direction here."""
    text = "".join(
        (ROOT / f"ace/downstream/{name}.py").read_text(encoding="utf-8")
        for name in ("classification", "segmentation", "landmarks", "localisation")
    )
    for name, words in WORDS.items():
        assert f'"{name}"' in text
        assert words.text
        assert words.is_error == name.startswith(("calibration_error", "hd95", "error"))
    assert words_of("iobb_at_12_5pct").title == "IoBB of the map at 12.5 %"
    assert words_of("iou_at_50pct/nodule").title == "IoU of the map at 50 %: nodule"
    assert words_of("dice/left_lung").title == "Dice: left_lung"
    assert words_of("odd_figure").is_error is None
    assert [amount_words(name) for name in ("0_5pct", "1shot", "all")] == [
        "0.5 % of the training patients",
        "1 training image a class",
        "all",
    ]


def test_nothing_of_the_section_is_there_without_tasks(project: Path) -> None:
    write(project, "phantom", planted())
    page = page_of(project)
    body = page[page.index("<body>") :]
    for word in ("Downstream", "#tasks", 'id="tasks"', "finetune", 'class="task"', "not part of this task"):
        assert word not in body
    assert "They are counted, never trained on." in page or "a probe of it was" in page


def test_the_navigation_and_a_card_lead_to_the_section_behind_the_comparison(project: Path) -> None:
    told = planted()
    write(project, "phantom", told)
    write(project, "other", planted(ENCODERS[:2]))
    page = page_of(project, "phantom", "other")
    assert '<a href="#comparison">Encoders</a><a href="#tasks">Downstream tasks</a>' in page
    places = [
        page.index(part) for part in ('id="comparison"', 'class="cards"', 'id="tasks"', 'id="task-1"', 'id="idea"')
    ]
    assert places == sorted(places)
    card = page[page.index('<h3><a href="#tasks">') :]
    card = card[: card.index("</article>")]
    assert re.findall(r'<a href="#(task-\d)">([^<]*)</a> <small>([^<]*)</small>', card) == [
        ("task-0", "phantom", "AUROC, 4 uses of labels"),
        ("task-1", "other", "AUROC, 4 uses of labels"),
    ]
    gains = [told["gain_over_untrained"][method][amount]["auroc"] for method, amount in USES]
    counts = sum(gain["low"] > 0 for gain in gains), sum(gain["high"] < 0 for gain in gains)
    expected = f"untrained ▲ {counts[0]} ▼ {counts[1]} ≈ {4 - sum(counts)}"
    assert expected in text_of(f"<body>{card}")
    assert counts[0], "or the count shows nothing"


def test_what_is_said_of_images_patients_seeds_and_looks_is_the_files(project: Path) -> None:
    told = planted()
    write(project, "phantom", told)
    words = text_of(page_of(project, "phantom"))
    assert "99 test images of 66 patients of phantom-b000 , measured once. Figures are means over 3 seeds." in words
    assert "measured once" in words
    drawn = "141 images (100 % of the training patients), 3 to 5 images (2.5 % of the training patients)"
    assert f"Trained on {drawn}, 27 images (5 training images a class)." in words
    assert "these are not results" not in words
    assert "pretrained on some of these images" not in words
    assert "an earlier release" not in words
    told["measured"] |= {"num_seeds": 1, "num_reads": 3, "num_images": 1, "num_patients": 1}
    write(project, "phantom", told)
    words = text_of(page_of(project, "phantom"))
    assert "1 test image of 1 patient of phantom-b000 . One seed. These images were measured 3 times by now" in words
    assert "measured once" not in words
    told["measured"] |= {"split": "val", "accept_shared_images": True}
    write(project, "phantom", told)
    assert "Encoders that were pretrained on some of these images are accepted." in text_of(page_of(project, "phantom"))
    for name in ("num_reads", "num_training_images", "accept_shared_images"):
        del told["measured"][name]
    write(project, "phantom", told)
    words = text_of(page_of(project, "phantom"))
    assert "1 validation image of 1 patient" in words
    assert "Trained on" not in words
    assert "Figures of an earlier release do not record whether it does" in words
    assert "Settings may have been chosen on these patients, so these are not results." in words
    assert "by now" not in words


def test_what_is_not_the_same_for_all_encoders_does_not_stand_above_all(tmp_path: Path) -> None:
    told = planted()
    same = task_table(read_task(write(tmp_path, "phantom", told)), ENCODERS, is_drawn=False)
    assert {column.protocol for column in same.columns} == {"66 patients, mean of 5 labels, chance 0.500"}
    told["untrained"]["full"]["100pct"]["auroc"]["n"] = 65
    other = task_table(read_task(write(tmp_path, "phantom", told)), ENCODERS, is_drawn=False)
    assert [column.protocol for column in other.columns] == ["", *(column.protocol for column in same.columns[1:])]


def test_methods_are_told_as_the_kind_of_task_has_them(tmp_path: Path) -> None:
    def methods(headline: str) -> str:
        told = {"one": {name: {"100pct": {headline: figure(0.5, 0.4, 0.6)}} for name in ("full", "linear", "new")}}
        table = task_table(read_task(write(tmp_path, "a", told | {"measured": MEASURED})), ["one"])
        return " ".join(f"{title}: {text}." for title, text in table.methods)

    assert "encoder and head are trained together" in methods("auroc")
    assert "UPerNet decoder are trained together to draw masks" in methods("dice")
    assert "a heat map for each landmark" in methods("found")
    assert methods("auroc").endswith("new: .")


def test_a_method_without_a_name_is_shown(project: Path) -> None:
    write(project, "a", {"trained": {"": {"": {"auroc": figure(0.5, 0.4, 0.6)}}}, "measured": MEASURED})
    assert "0.500 [0.400, 0.600]" in text_of(page_of(project, "a"))


def test_a_task_of_one_use_shows_all_its_means_and_one_of_one_encoder_no_difference(project: Path) -> None:
    figures = ("dice", "iou", "hd95_px_at_1024", "dice/heart")
    told = {"trained": {"full": {"100pct": {name: figure(0.8, 0.7, 0.9, num_structures=2) for name in figures}}}}
    write(project, "masks", told | {"measured": MEASURED})
    page = page_of(project, "masks")
    comparison, every = Tables(section_of(page)).tables
    assert comparison[0] == ["encoder", "trained in full, 100 % of the training patients"]
    assert [head.split(" ")[0] for head in comparison[1]] == ["Dice", "IoU", "HD95,"]
    assert comparison[2] == ["trained", "0.800 [0.700, 0.900]", "0.800 [0.700, 0.900]", "0.8 [0.7, 0.9]"]
    assert comparison[3:] == [[name, "not part of this task"] for name in ("untrained", "ImageNet")]
    assert [row[0].split(" (")[0] for row in every[2:]] == ["Dice", "IoU", "HD95, px", "Dice: heart"]
    words = text_of(section_of(page).join(("<body>", "")))
    assert "No paired difference of these encoders was taken." in words
    assert "minus that of the row" not in words
    assert "How often" not in text_of(page)


def test_figures_that_are_missing_or_no_numbers_are_dashes_and_are_not_judged(project: Path) -> None:
    told = planted()
    of = told["imagenet"]["linear"]
    of["100pct"]["auroc"] = {**of["100pct"]["auroc"], "value": float("nan")}
    del of["2_5pct"]
    told["untrained"]["full"]["100pct"]["auroc"] = dict(NOT_MEASURED)
    told["gain_over_untrained"]["linear"]["100pct"]["auroc"] = dict(NOT_MEASURED)
    told["gain_over_untrained"]["linear"]["2_5pct"]["auroc"] |= {"low": float("nan"), "high": float("nan")}
    told["trained"]["knn"]["5shot"]["auroc"] |= {"low": None, "chance": float("nan")}
    write(project, "phantom", told)
    page = page_of(project, "phantom")
    trained, untrained, imagenet = Tables(section_of(page)).tables[0][2:]
    assert imagenet[2:4] == ["– it is not a number", "– not measured"]
    assert untrained[1] == "– nothing to divide by"
    assert untrained[2] == told_as(told["untrained"]["linear"]["100pct"]["auroc"])
    lone = told["gain_over_untrained"]["linear"]["2_5pct"]["auroc"]["value"]
    without_sign = f"{told_as(told['untrained']['linear']['2_5pct']['auroc'])} {lone:.3f}".replace(" -", " −")
    assert untrained[3] == without_sign
    assert trained[4] == f"{told['trained']['knn']['5shot']['auroc']['value']:.3f}"
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", section_of(page), flags=re.DOTALL).lower()


def test_names_with_markup_are_words_and_long_ones_break(project: Path, tmp_path: Path) -> None:
    odd, long = "<script>alert(1)</script>", "an_encoder_" * 12 + "x"
    told = planted(("trained", "untrained", long))
    for section in told.values():
        for amounts in section.values() if section is not told["measured"] else ():
            for figures in amounts.values():
                if "auroc/nodule" in figures:
                    figures[f"auroc/{odd}"] = figures.pop("auroc/nodule")
        if "full" in section:
            section[f"{odd}$x$"] = section.pop("full")
    told["measured"]["batch"] = odd
    told[f"gain_over_{odd}"] = told[f"gain_over_{long}"]
    told[odd] = told["untrained"]
    write(project, "a$b & <i>", told)
    write_report(PARAMS, tmp_path / "r.html", project, ["a$b & <i>"])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<i>a" not in page
    rows = [row[0] for row in Tables(section_of(page)).tables[0][2:]]
    assert rows == ["trained", "untrained", "ImageNet", long, odd]
    assert "an_<wbr>encoder_<wbr>" in page


@pytest.fixture(scope="module")
def whole(evaluated_project: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with ten encoders of a study, of which three are the project's, and a task of one use."""
    root = Path(shutil.copytree(evaluated_project, tmp_path_factory.mktemp("whole") / "project"))
    (root / "metrics/finetune").mkdir()
    shutil.copy(ROOT / "studies/nih/finetune/nih512_frozen.json", root / "metrics/finetune")
    names = ("dice", "dice_where_present", "dice_over_set", "iou", "iou_over_set", "hd95_px_at_1024", "hd95_mm")
    figures = {name: figure(0.8, 0.7, 0.9, num_structures=6) for name in names}
    told = {name: {"full": {"100pct": figures}} for name in ENCODERS}
    told["imagenet"] = {"full": {"100pct": {**figures, "hd95_mm": dict(NOT_MEASURED)}}}
    gains = {f"gain_over_{name}": {"full": {"100pct": {"dice": figure(0.1, 0, 0.2)}}} for name in ENCODERS[1:]}
    write(root, "masks", {**told, **gains, "measured": MEASURED})
    return page_of(root, "nih512_frozen", "masks")


def test_every_figure_of_a_real_task_is_on_the_page_and_none_besides(whole: str) -> None:
    told = json.loads((ROOT / "studies/nih/finetune/nih512_frozen.json").read_text(encoding="utf-8"))
    comparison = Tables(section_of(whole)).tables[0]
    encoders = [name for name in told if name not in ("measured", "commit") and not name.startswith("gain_over_")]
    uses = [(method, amount) for method, amounts in told["trained"].items() for amount in amounts]
    assert [row[0].replace("ImageNet", "imagenet") for row in comparison[2:]] == encoders
    for name, (_, *cells) in zip(encoders, comparison[2:], strict=True):
        for (method, amount), cell in zip(uses, cells, strict=True):
            found = re.sub("[▲▼≈] ", "", cell)
            gain = told.get(f"gain_over_{name}", {}).get(method, {}).get(amount, {}).get("auroc")
            expected = [told_as(told[name][method][amount]["auroc"]), *([told_as(gain)] if gain else [])]
            assert found == " ".join(expected)


def test_the_page_with_tasks_asks_for_nothing_and_has_unique_ids_and_targets(whole: str) -> None:
    elements = Elements(whole)
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in elements.links:
        assert link.startswith(("data:", "#"))
        assert link.startswith("data:") or link.removeprefix("#") in ids
    for place in re.findall(r"url\(#([^)]*)\)", whole):
        assert place in ids
    assert len(whole) < 15e6
    scrolled = [
        attributes
        for tag, attributes in Elements(section_of(whole)).found
        if "scroll" in attributes.get("class", "").split()
    ]
    assert scrolled
    assert all(own["tabindex"] == "0" and own["aria-label"] for own in scrolled), "a keyboard reaches what scrolls"


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_with_tasks_has_no_fault_in_a_browser(whole: str, tmp_path: Path, width: int) -> None:
    assert probe(whole, tmp_path, width)[1] == "[]"


def test_figures_that_are_not_there_or_are_none_say_what_to_run(project: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"metrics/finetune/nih.json: not found; `dvc repro finetune@nih` writes it"):
        page_of(project, "nih")
    told = {"trained": {"full": {"100pct": {"auroc": figure(0.5, 0.4, 0.6)}}}, "measured": MEASURED}
    endless = json.dumps(told | {"measured": MEASURED | {"num_images": float("inf")}})
    huge = json.dumps(told | {"other": {"full": {"100pct": {"auroc": figure(10**400, 0, 1)}}}})
    objects = "", "[]", "{}", '{"trained": 3}', '{"trained": {"full": {}}, "measured": {}}', '{"measured": {}}'
    for broken in (*objects, endless, huge, "[" * 100_000):
        (tmp_path / "nih.json").write_text(broken, encoding="utf-8")
        with pytest.raises(ConfigError, match=r"nih.json: found no figures of a task .*`dvc repro finetune@nih`"):
            read_task(tmp_path / "nih.json")


@pytest.mark.parametrize(
    "facts",
    [
        *(
            {"num_training_images": {"100pct": nums}}
            for nums in ("12", 12, [12], [-1, 2], ["1", 2], [1.5, 2], [None, 2])
        ),
        {"num_training_images": None},
        {"num_training_images": [12, 24]},
        {"accept_shared_images": "false"},
        {"accept_shared_images": 0},
        {"num_images": "99"},
        {"num_patients": True},
        {"num_reads": -1},
    ],
    ids=str,
)
def test_facts_that_are_no_counts_are_refused_and_not_shown_as_others(facts: Told, tmp_path: Path) -> None:
    told = planted()
    told["measured"] |= facts
    with pytest.raises(ConfigError, match=r"phantom.json: found no figures of a task .*`dvc repro finetune@phantom`"):
        read_task(write(tmp_path, "phantom", told))


def test_the_data_of_a_task_are_not_told_as_never_trained_on(project: Path) -> None:
    write(project, "phantom", planted())
    without, with_task = text_of(page_of(project)), text_of(page_of(project, "phantom"))
    assert "Downstream tasks trained and were measured on this set." in with_task
    assert "Downstream tasks trained" not in without
    told = planted()
    told["measured"]["batch"] = "clinic-b000"
    write(project, "phantom", told)
    assert "Downstream tasks trained" not in text_of(page_of(project, "phantom")), "of another set"


def test_provenance_has_the_stage_of_the_task(project: Path) -> None:
    write(project, "phantom", planted())
    lock = project / "dvc.lock"
    lock.write_text(
        lock.read_text(encoding="utf-8")
        + "  finetune@phantom:\n    deps: [{path: models/ace}, {path: models/imagenet}]\n"
        "    outs: [{path: metrics/finetune/phantom.json, md5: '77', size: 9}]\n"
        "  import@imagenet:\n    outs: [{path: models/imagenet, md5: 88.dir, size: 9}]\n"
        "  finetune@other:\n    outs: [{path: metrics/finetune/other.json, md5: '99', size: 9}]\n",
        encoding="utf-8",
    )

    def stages(page: str) -> set[str]:
        table = page[page.index("out in dvc.lock") :]
        return set(re.findall(r"<tr><td>([^<]*)</td>", table[: table.index("</table>")]))

    assert stages(page_of(project, "phantom")) == {"pretrain", "finetune@phantom", "import@imagenet"}
    assert stages(page_of(project)) == {"pretrain"}


def test_two_encoders_have_the_difference_that_was_taken_turned_round_or_none(tmp_path: Path) -> None:
    told = planted()
    told["gain_over_untrained"]["full"]["100pct"]["auroc"] = figure(0.0, -0.25, 0.125)
    task = read_task(write(tmp_path, "phantom", told))
    forward, back = task_of_two(task, "trained", "untrained"), task_of_two(task, "untrained", "trained")
    assert forward is not None
    assert back is not None
    use = ("full", "100pct")
    assert forward.differences["untrained"][use]["auroc"]["high"] == 0.125
    turned = back.differences["trained"][use]["auroc"]
    assert [str(turned[end]) for end in ("value", "low", "high")] == ["0.0", "-0.125", "0.25"]
    assert (forward.first, back.first) == ("trained", "untrained")
    neither = task_of_two(task, "untrained", "imagenet")
    assert neither is not None
    assert (neither.first, neither.differences, list(neither.uses)) == (None, {}, ["untrained", "imagenet"])
    assert neither.headline == "auroc"
    lone = task_of_two(task, "trained", "nowhere")
    assert lone is not None
    assert (list(lone.uses), lone.first) == (["trained"], None)
    assert task_of_two(task, "no", "nowhere") is None


def compared(root: Path, *names: str) -> str:
    assert run_command(build_parser(), ["report", "--compare", *names, "--out", "reports/two.html"]) == 0
    return (root / "reports/two.html").read_text(encoding="utf-8")


def test_a_page_of_two_encoders_has_their_tasks(
    project: Path,
    evaluated_project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = planted()
    write(project, "phantom", told)
    own = {name: f"{evaluated_project}/models/{name}" for name in ("ace", "imagenet")}
    encoders = {
        "trained": {"model": own["ace"], "network": "teacher"},
        "imagenet": {"model": own["imagenet"], "network": "teacher"},
    }
    values = {"encoders": encoders, "evaluate": EVALUATE, "finetune": {"phantom": "x", "not_run_yet": "x"}}
    (project / "params.yaml").write_text(json.dumps(values), encoding="utf-8")
    monkeypatch.setenv("ACE_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.chdir(project)
    page = compared(project, "imagenet", "trained")
    (table, _) = Tables(section_of(page)).tables
    gain = told["gain_over_imagenet"]["full"]["100pct"]["auroc"]
    turned = {"value": -gain["value"], "low": -gain["high"], "high": -gain["low"]}
    assert table[2][:2] == ["ImageNet", told_as(told["imagenet"]["full"]["100pct"]["auroc"])]
    assert table[3][1].split(" ", 2)[2].endswith(told_as(turned))
    assert table[3][1].startswith(told_as(told["trained"]["full"]["100pct"]["auroc"]))
    printed = capsys.readouterr().out
    assert "task phantom:" in printed
    assert f"imagenet minus it {told_as(turned)}" in printed
    values["finetune"] = {}
    (project / "params.yaml").write_text(json.dumps(values), encoding="utf-8")
    assert 'id="tasks"' not in compared(project, "imagenet", "trained")


def test_two_studies_have_the_tasks_that_both_have_without_a_difference(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, other = planted(), planted()
    other["trained"], other["measured"] = told["imagenet"], {**MEASURED, "num_images": 7, "batch": "clinic-b000"}
    for name, figures in (("one", told), ("two", other)):
        study = project / "studies" / name
        shutil.copytree(project / "metrics", study)
        (study / "finetune").mkdir()
        (study / "finetune/phantom.json").write_text(json.dumps(figures), encoding="utf-8")
    (project / "studies/one/finetune/of_one_study.json").write_text(json.dumps(told), encoding="utf-8")
    for name, headline in (("one", "auroc"), ("two", "kappa")):
        unlike = planted(figures=(headline, "accuracy"))
        (project / f"studies/{name}/finetune/of_two_figures.json").write_text(json.dumps(unlike), encoding="utf-8")
    monkeypatch.chdir(project)
    page = compared(project, "studies/one", "studies/two")
    (table, _) = Tables(section_of(page)).tables
    assert table[2] == ["studies/one", *(told_as(told["trained"][method][amount]["auroc"]) for method, amount in USES)]
    assert table[3] == ["studies/two", *(told_as(told["imagenet"][method][amount]["auroc"]) for method, amount in USES)]
    words = text_of(page)
    assert "studies/one: 99 test images of 66 patients of phantom-b000" in words
    assert "studies/two: 7 test images of 66 patients of clinic-b000" in words
    assert "Within a task, all of them were measured on the same images" not in words
    assert "of_one_study" not in words
    assert "of_two_figures" not in words
    assert "not_run" not in words


def test_files_that_say_alike_whose_images_are_measured_are_not_told_as_of_the_same_images(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two hospitals may call their first batch alike; and what two files do not say nobody has looked for."""
    write(project, "phantom", planted())
    for name in ("one", "two"):
        shutil.copytree(project / "metrics", project / "studies" / name)
    monkeypatch.chdir(project)
    words = text_of(compared(project, "studies/one", "studies/two"))
    assert "99 test images of 66 patients of phantom-b000 , measured once." in words
    assert "measured on the same images" not in words
    assert "Figures of two files, side by side without a difference." in words
    older = planted()
    del older["measured"]["num_training_images"], older["measured"]["accept_shared_images"]
    (project / "studies/two/finetune/phantom.json").write_text(json.dumps(older), encoding="utf-8")
    words = text_of(compared(project, "studies/one", "studies/two"))
    assert words.count("Trained on 141 images") == 1
    assert "Figures of an earlier release do not record" in words, "as those of one of them"
    words = text_of(compared(project, "studies/one", "studies/one:untrained"))
    assert "No paired difference of these encoders was taken" not in words, "the file has it"
    arguments = ["report", "--compare", "studies/one", "studies/two", "--task", "phantom"]
    assert run_command(build_parser(), arguments) == 2
    assert "--task phantom: found two files of metrics to compare" in capsys.readouterr().err
