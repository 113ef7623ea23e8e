"""What an erasure follows, searches for and takes out of files, one part at a time."""

import gzip
import hashlib
import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from ace.operations import erasure, erasure_plan
from ace.operations.dvc_objects import made_from, read_recorded
from ace.operations.erasure import _forget_paths, _forget_patient, _without_lines
from ace.operations.erasure_plan import Place, _copies, _files_of_others, _place
from ace.operations.errors import OperationsError
from ace.operations.residue import is_in_git, piece_of, search
from shards.core.records import File, MaskFiles
from tests.ace.operations.service import init_clone
from tests.support.checkout import git

BYTES = random.Random(0).randbytes(4000)


def stage(deps: list[str], outs: list[str]) -> dict[str, list[dict[str, str]]]:
    return {"deps": [{"path": path} for path in deps], "outs": [{"path": path} for path in outs]}


def test_what_shows_images_is_followed_and_models_are_a_matter_of_decision() -> None:
    stages = {
        "report": stage(["data/evidence"], ["reports/report.html"]),
        "pretrain": stage(["data/shards/a"], ["models/ace", "metrics/pretrain.json"]),
        "evaluate": stage(["data/answers/trained"], ["data/evidence"]),
        "measure": stage(["data/shards/a", "models/ace"], ["data/answers/trained"]),
        "elsewhere": stage(["data/shards/b", "models/ace"], ["data/answers/elsewhere"]),
    }
    shown = {"data/answers/trained": "measure", "data/evidence": "evaluate", "reports/report.html": "report"}
    assert made_from(stages, ["a"], through_models=False) == shown
    model = {"models/ace": "pretrain", "metrics/pretrain.json": "pretrain", "data/answers/elsewhere": "elsewhere"}
    assert made_from(stages, ["a"], through_models=True) == {**shown, **model}
    assert made_from(stages, ["c"], through_models=True) == {}


def test_tables_of_a_public_dataset_that_came_with_a_delivery_are_named_as_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {"own": "folder", "nih": "nih-chestxray14", "elsewhere": "padchest"}
    batches = {name: SimpleNamespace(source=SimpleNamespace(kind=kind)) for name, kind in kinds.items()}
    (tmp_path / "params.yaml").write_text("operations: {deliveries: {name: clinic}}\n")
    (tmp_path / "deliveries").mkdir()
    monkeypatch.setattr(erasure, "batches_of", lambda _: batches)
    monkeypatch.setattr(erasure, "search", lambda *_: [])
    monkeypatch.setattr(erasure, "is_in_git", lambda *_: False)
    folders = {name: tmp_path / ("disk" if name == "elsewhere" else f"deliveries/{name}/images") for name in kinds}
    empty = {"manifest": tmp_path, "paths": (), "keys": (), "contents": ()}
    places = tuple(Place(name=name, images=folder, **empty) for name, folder in folders.items())
    plan = SimpleNamespace(places=places, number=3, needles=())
    registry = SimpleNamespace(models=tmp_path / "served")
    withdrawals = SimpleNamespace(registry=registry, known=lambda: {3: SimpleNamespace(versions=[])})
    monkeypatch.setattr(erasure.Erasure, "root", tmp_path)
    stores = SimpleNamespace(local=[], folders=[])
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    unsearched, *left = erasure.Erasure(withdrawals, plan)._left(stores)  # type: ignore[arg-type]
    assert unsearched == "whatever Dagster has: $DAGSTER_HOME is not set, so nothing was looked for there"
    assert left == ["rows of the patient in the dataset's own tables, which came with deliveries of nih-chestxray14"]


def test_a_piece_is_found_in_files_and_in_all_of_git_and_no_piece_is_taken_of_what_is_regular(tmp_path: Path) -> None:
    piece = piece_of(BYTES)
    assert piece is not None
    assert piece in BYTES
    assert piece_of(b"\0" * 4000) is None
    init_clone(tmp_path)
    with_image, without = tmp_path / "a" / "with", tmp_path / "b"
    with_image.parent.mkdir()
    with_image.write_bytes(b"before" + BYTES + b"after")
    without.write_bytes(BYTES[::-1])
    (tmp_path / "link").symlink_to(with_image)
    (tmp_path / "same").hardlink_to(with_image)
    assert search([tmp_path, tmp_path / "missing"], [b"nobody", piece], without) == [with_image], "each file once"
    (tmp_path / "same").unlink()
    assert search([tmp_path], [b"nobody", piece], with_image) == []
    assert not is_in_git(tmp_path, [piece])
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "--quiet", "-m", "an image")
    git(tmp_path, "rm", "--quiet", "--cached", "a/with")
    git(tmp_path, "commit", "--quiet", "-m", "it is gone")
    assert is_in_git(tmp_path, [b"nobody", piece])
    assert not is_in_git(tmp_path, [b"nobody"])


def test_a_piece_across_two_chunks_of_a_large_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"\0" * (2**24 - 20) + BYTES[:48])
    assert search([tmp_path], [BYTES[:48]], tmp_path / "none") == [path]


def test_a_copy_that_is_left_out_goes_and_one_that_is_registered_for_somebody_else_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("own.png", "copy.png", "blank_of_another.png"):
        (tmp_path / name).write_bytes(BYTES)
    (tmp_path / "of_the_same_size.png").write_bytes(BYTES[::-1])
    registered = [File("own.png"), File("blank_of_another.png")]
    entries = [(0, SimpleNamespace(record=SimpleNamespace(image=file))) for file in registered]
    monkeypatch.setattr(erasure_plan, "service_folders", lambda root: [root])
    monkeypatch.setattr(erasure_plan, "manifests", lambda root: [("a", root / "a.jsonl", root)])
    monkeypatch.setattr(erasure_plan, "iterate_manifest", lambda _: (None, entries))
    content = (len(BYTES), hashlib.sha256(BYTES).hexdigest())
    place = Place(
        name="a", manifest=tmp_path / "a.jsonl", images=tmp_path, paths=("own.png",), keys=(), contents=(content,)
    )
    assert _copies(tmp_path, [place]) == [tmp_path / "copy.png"]


def test_a_mask_that_is_another_patients_too_is_not_the_patients_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entry(patient: str, image: str, mask: str) -> tuple[int, SimpleNamespace]:
        masks = {"lung": MaskFiles(files=(File("lungs.png"), File(mask)))}
        return 0, SimpleNamespace(record=SimpleNamespace(patient=patient, image=File(image), masks=masks))

    entries = [entry("one", "1.png", "heart_1.png"), entry("two", "2.png", "heart_2.png")]
    monkeypatch.setattr(erasure_plan, "manifests", lambda root: [("a", root / "a.jsonl", root)])
    monkeypatch.setattr(erasure_plan, "iterate_manifest", lambda _: (None, entries))
    monkeypatch.setattr(erasure_plan, "key_of", lambda record, header: record.image.path)
    shared = _files_of_others(tmp_path, "one")
    assert shared == {tmp_path / name for name in ("2.png", "lungs.png", "heart_2.png")}
    place = _place("a", tmp_path / "a.jsonl", tmp_path, "one", shared)
    assert place is not None
    assert place.paths == ("1.png", "heart_1.png")


def test_objects_of_commits_that_were_merged_and_not_taken_are_known(tmp_path: Path) -> None:
    init_clone(tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").touch()

    def lock(md5: str) -> None:
        out = {"path": "data/shards/a", "md5": md5}
        (tmp_path / "dvc.lock").write_text(json.dumps({"stages": {"shard@a": {"outs": [out]}}}))
        git(tmp_path, "add", "dvc.lock", ".dvc/config")
        git(tmp_path, "commit", "--quiet", "-m", md5)

    lock("11")
    git(tmp_path, "switch", "--quiet", "--create", "theirs")
    lock("22")
    git(tmp_path, "switch", "--quiet", "service")
    lock("33")
    git(tmp_path, "merge", "--quiet", "--strategy", "ours", "-m", "passed over", "theirs")
    assert read_recorded(tmp_path, "HEAD", ["a"]).holding == {"11", "22", "33"}


def test_what_another_project_with_a_batch_of_that_name_made_is_not_of_the_patient(tmp_path: Path) -> None:
    init_clone(tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").touch()

    def run(manifest: str, made: str) -> dict[str, list[dict[str, str]]]:
        deps = [{"path": "data/manifests/a.jsonl", "md5": manifest}]
        return {"deps": deps, "outs": [{"path": "data/shards/a", "md5": made}]}

    (tmp_path / "dvc.lock").write_text(json.dumps({"stages": {"shard@a": run("our manifest", "11")}}))
    git(tmp_path, "add", "dvc.lock", ".dvc/config")
    git(tmp_path, "commit", "--quiet", "-m", "shards")
    for name, entry in {"own": run("our manifest", "12"), "theirs": run("their manifest", "99")}.items():
        path = tmp_path / ".dvc/cache/runs/aa" / name / "entry"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(entry))
    assert read_recorded(tmp_path, "HEAD", ["a"]).holding == {"11", "12"}


def test_objects_that_git_cannot_read_are_not_taken_for_searched(tmp_path: Path) -> None:
    init_clone(tmp_path)
    (tmp_path / "a").write_bytes(BYTES)
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "--quiet", "-m", "a file")
    for path in (tmp_path / ".git/objects").glob("??/*"):
        path.chmod(0o600)
        path.write_bytes(b"damaged")
    with pytest.raises(OperationsError, match="git cannot read all its objects"):
        is_in_git(tmp_path, [b"nobody"])


def test_only_the_patients_rows_leave_a_manifest_a_table_and_a_list(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"record": {"patient": name, "note": "one"}}) + "\n" for name in ("one", "two", "one")]
    path.write_text('{"kind":"folder","num_images":3}\n' + "".join(lines))
    for _ in range(2):
        _forget_patient(path, "one")
        assert path.read_text() == '{"kind":"folder","num_images":1}\n' + lines[1]
    table = tmp_path / "labels.csv"
    table.write_text('view,path\nPA,a.png\n"PA, upright",b.png\n', encoding="utf-8-sig")
    _forget_paths(table, {"a.png"})
    assert table.read_text() == 'view,path\n"PA, upright",b.png\n'
    table.write_text(
        " path ,patient\n./a.png,one\nsub\\a.png,one\n e\u0301.png ,one\n\nb.png,two\n\n", encoding="utf-8"
    )
    _forget_paths(table, {"a.png", "sub/a.png", "\u00e9.png"})
    assert table.read_text().split() == ["path,patient", "b.png,two"], "as `register` has read them"
    compressed = tmp_path / "labels.csv.gz"
    compressed.write_bytes(gzip.compress(b"path,patient\na.png,one\nb.png,two\n"))
    _forget_paths(compressed, {"a.png"})
    assert gzip.decompress(compressed.read_bytes()) == b"path,patient\nb.png,two\n"
    assert compressed.stat().st_mode & 0o777 == 0o600
    by_uid = tmp_path / "uids.csv"
    by_uid.write_text("sop_uid,nodule\n1.2.3,1\n")
    for path in (tmp_path / "missing.csv", by_uid):
        _forget_paths(path, {"a.png", "1.2.3"})
    assert by_uid.read_text() == "sop_uid,nodule\n1.2.3,1\n"
    text = "one  # a note\npatient one\npatient  two\nthree\n"
    assert _without_lines(text, ["one", "patient two"]) == "patient one\nthree\n"
