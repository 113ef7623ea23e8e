"""The file of the explorer: one, without keys, without a network, the same on every run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from ace.evaluation.params import EvaluateParams
from ace.explorer import explore as stage
from ace.explorer.explore import explore
from ace.protocol.features import CanvasView, Features
from shards.core.errors import ConfigError
from shards.reading.reader import ShardIndex
from tests.ace.evaluation.drawn_project import BATCH, ENCODERS, EVALUATE, encoders_of, with_properties
from tests.ace.report.conftest import paths_in
from tests.oracles.explorer import PageNumbers


def draw(project: Path, out: Path, evaluate: dict | None = None) -> None:
    params = EvaluateParams.from_params(evaluate or EVALUATE, "evaluate")
    explore(params, encoders_of(project), paths_in(project), out)


@pytest.mark.slow
def test_the_same_page_on_every_run(explorer: Path, evaluated_project: Path, tmp_path: Path) -> None:
    draw(evaluated_project, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == explorer.read_bytes()


def test_patients_are_numbers_and_no_key_of_theirs_is_in_the_page(explorer: Path, evaluated_project: Path) -> None:
    page = explorer.read_text()
    index = ShardIndex.open(evaluated_project / "data/shards" / BATCH)
    names = {name.decode() for field in ("key", "patient") for name in index.rows[field].tolist()}
    assert len(names) > 50
    # Base64 may spell anything.
    readable = re.sub(r"[A-Za-z0-9+/=]{200,}", "", page)
    assert not [name for name in names if name in readable]
    assert str(evaluated_project) not in page
    assert set(PageNumbers(explorer).data["patients"][0]) == {"image", "landmarks", "squares"}


def test_nothing_outside_the_file_is_named(explorer: Path) -> None:
    page = explorer.read_text()
    assert "default-src 'none'" in page
    assert not re.findall(r"https?://|//[a-z]+\.|src=\"(?!data:)|@import|url\(", page)


def test_its_numbers_are_the_tokens_that_measure_kept(explorer: Path, evaluated_project: Path) -> None:
    numbers = PageNumbers(explorer)
    keys = json.loads((evaluated_project / "data/cohort.json").read_text())["keys"]
    for number, name in enumerate(ENCODERS):
        answers = evaluated_project / "data/answers" / name
        told = json.loads((answers / "answers.json").read_text())
        features = Features.open(answers / "features" / told["features"])
        views = [*(CanvasView(key) for key in keys[:6]), *(CanvasView(key, is_mirrored=True) for key in keys[:4])]
        whole = np.stack([features.of(view) for view in views]).reshape(10 * 225, -1)
        encoder = numbers.data["encoders"][number]
        less = numbers.codes[number].reshape(10 * 225, -1) * np.array(encoder["scales"])
        # The nearest matrix of that rank has the error `least`, and rounding adds little.
        squares = np.linalg.svd(whole, compute_uv=False) ** 2
        least = np.square(squares[less.shape[1] :]).sum() / np.square(squares).sum()
        lost = np.square(whole @ whole.T - less @ less.T).mean() / np.square(whole @ whole.T).mean()
        assert lost < least + 0.01
        assert encoder["kept"] == pytest.approx(squares[: less.shape[1]].sum() / squares.sum(), abs=0.05)
        assert 0.5 < encoder["same"] <= encoder["near"] <= 1


def test_removed_squares_are_those_that_the_encoder_saw(explorer: Path, evaluated_project: Path) -> None:
    numbers = PageNumbers(explorer)
    for number, name in enumerate(ENCODERS):
        answers = np.load(evaluated_project / "data/answers" / name / "decomposition.npz")
        encoder = numbers.data["encoders"][number]
        for patient, square, other in ((0, 0, 0), (5, 1, 2), (3, 1, 3)):
            expected = answers["queries_black"][patient, square] @ answers["candidates"][other, square]
            assert encoder["removed"][patient][square][other] == pytest.approx(float(expected), abs=1e-4)


def test_a_set_without_landmarks_has_an_explorer_too(evaluated_project: Path, tmp_path: Path) -> None:
    """As every clinic's: nothing is told of errors."""
    from ace.explorer.explore import _page

    numbers = PageNumbers(evaluated_project / "reports/explorer.html")
    bare = {**numbers.data, "patients": [{**patient, "landmarks": []} for patient in numbers.data["patients"]]}
    assert "<script" in _page(bare, [codes.tobytes() for codes in numbers.codes])


def test_markup_in_names_stays_text(explorer: Path) -> None:
    numbers = PageNumbers(explorer)
    bad = "</script><b>bold"
    patients = [{**patient, "landmarks": [[bad, bad, 1, 1]]} for patient in numbers.data["patients"]]
    page = stage._page({**numbers.data, "batch": bad, "patients": patients}, [b""])
    assert bad not in page
    assert page.count("</script>") == explorer.read_text().count("</script>") - 2


def test_without_its_section_there_is_no_page(evaluated_project: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.properties\.explorer: not there"):
        draw(evaluated_project, tmp_path / "e.html", with_properties(explorer=None))


def test_encoders_that_were_measured_with_other_params_are_refused(evaluated_project: Path, tmp_path: Path) -> None:
    more = with_properties(explorer={"num_patients": 7, "num_mirrored": 0, "num_components": 16})
    with pytest.raises(ConfigError, match="measure@trained` measures it again"):
        draw(evaluated_project, tmp_path / "e.html", more)


def test_a_page_that_would_not_open_well_is_refused(
    evaluated_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "MAX_BYTES", 10_000)
    with pytest.raises(ConfigError, match=r"lower num_patients in evaluate\.properties\.explorer"):
        draw(evaluated_project, tmp_path / "e.html")
    assert not (tmp_path / "e.html").exists()


def test_a_page_of_many_encoders_has_fewer_numbers_a_token_and_says_so(
    evaluated_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = 10 * 225 * len(ENCODERS)  # of one component
    monkeypatch.setattr(stage, "MAX_BYTES", stage.BESIDE_TOKENS + 5 * numbers * 4 // 3 + 4)
    draw(evaluated_project, tmp_path / "e.html")
    fewer = PageNumbers(tmp_path / "e.html")
    assert [len(encoder["scales"]) for encoder in fewer.data["encoders"]] == [5] * len(ENCODERS)
    assert (tmp_path / "e.html").read_text().count("<td>5 of ") == len(ENCODERS)
