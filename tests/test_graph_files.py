"""dvc.yaml, params.yaml, the typed configuration and the code say the same thing."""

import ast
import shutil
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from ace.config import Config, check_graph, resolve
from ace.embed.opening import EncoderParams
from ace.encoder_lines import with_encoders, with_tasks
from ace.evaluation.params import EvaluateParams
from ace.pretrain.identity import CODE
from ace.published.importing import import_timm
from shards.build.plan import VERSION
from shards.core.config import read_params
from shards.core.errors import ConfigError
from shards.delivery.batches import read_batch, settings_of
from shards.delivery.yaml_lines import SHARDS, TEMPLATES, add_deps, drop_deps, set_dep
from shards.format.exclusion import exclusion_dep

ROOT = Path(__file__).parents[1]
PACKAGES = ("ace", "shards", "pipelines")
PHANTOM_SET = f"{SHARDS}phantom-b000"
ENTRY = {
    "phantom": "shards.phantom.dataset",
    "pretrain": "ace.pretrain.pretrain",
    "variant": "ace.pretrain.pretrain",
    "import": "ace.published.importing",
    "cohort": "ace.evaluation.cohort",
    "measure": "ace.evaluation.measure",
    "evaluate": "ace.evaluation.evaluate",
    "decide": "ace.gate.decide",
    "finetune": "ace.downstream.finetune",
    "report": "ace.report.page",
    "explore": "ace.explorer.explore",
}
TELLING = ("ace/journal/", "ace/drawing/")
"""What stages import and do not depend on, unless they write a page: what is told decides no weight, no figure."""
PAGES = ("report", "explore")
EVALUATE = set(EvaluateParams.model_fields)
SECTIONS = {
    "cohort": "evaluate",
    "explore": "evaluate",
    "import": "imports",
    "measure": "evaluate",
    "variant": "variants",
}
"""Stages that have no section of their own name."""
PARTS = {
    ("variant", "variants"): {"variants.${key}"},
    ("import", "imports"): {"imports.${key}"},
    ("import", "grid"): {"grid.t"},
    ("cohort", "evaluate"): {
        f"evaluate.{key}" for key in EVALUATE - {"bootstrap", "checks", "dense", "images_per_forward", "num_examples"}
    },
    ("measure", "encoders"): {"encoders.${key}"},
    ("measure", "evaluate"): {
        *(f"evaluate.{key}" for key in EVALUATE - {"accept_shared_images", "bootstrap", "checks"}),
        "batches/${evaluate.batch}.yaml: measured",
    },
    ("finetune", "encoders"): {"encoders", "batches/${item}.yaml: measured"},
    ("evaluate", "evaluate"): {f"evaluate.{key}" for key in EVALUATE - {"checks"}},
    ("decide", "evaluate"): {f"evaluate.{key}" for key in EVALUATE - {"checks"}},
    ("decide", "operations"): {"operations.gate"},
    ("decide", "pretrain"): {"pretrain.collapse"},
    ("explore", "evaluate"): {
        f"evaluate.{key}" for key in EVALUATE - {"accept_shared_images", "bootstrap", "checks", "images_per_forward"}
    },
}
"""Sections that a stage takes but does not depend on as a whole: it reads its own batch alone, or no checks; its
own encoder, or the number of tokens alone."""
READERS = {"shards/delivery/batches.py", "shards/core/config.py", "shards/core/params.py"}
"""Where the functions that read params.yaml are defined."""


@cache
def load_yaml(name: str) -> dict:
    return YAML(typ="safe", pure=True).load((ROOT / name).read_text(encoding="utf-8"))


def stage_body(name: str) -> dict:
    stage = load_yaml("dvc.yaml")["stages"][name]
    return stage.get("do", stage)


@cache
def module_file(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.exists():
            return candidate
    return None


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def imported_modules(path: Path) -> set[str]:
    """Names of this project's modules that a file imports, inside functions too."""
    names: set[str] = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in PACKAGES and module_file(name)}


def import_closure(module: str) -> set[str]:
    """Files, relative to the root, that running `module` can import; package __init__ files hold no code here."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            path = module_file(name)
            assert path is not None, name
            waiting.extend(imported_modules(path))
    files = {module_file(name).relative_to(ROOT).as_posix() for name in seen}
    return {file for file in files if not file.endswith("__init__.py")}


@pytest.mark.parametrize("stage", ENTRY)
def test_code_dependencies_hold_the_import_closure_of_the_stage_and_each_has_a_part_in_it(stage: str) -> None:
    declared = {dep for dep in stage_body(stage).get("deps", []) if dep.split("/")[0] in PACKAGES}
    closure = {file for file in import_closure(ENTRY[stage]) if stage in PAGES or not file.startswith(TELLING)}
    assert {file if file in declared else Path(file).parent.as_posix() for file in closure} == declared


def test_every_stage_has_a_params_section_and_a_command_of_its_name() -> None:
    stages = load_yaml("dvc.yaml")["stages"]
    assert [name for name in stages if name != "shard"] == list(ENTRY)
    for name in stages:
        assert SECTIONS.get(name, name) in Config.model_fields
        command = stage_body(name)["cmd"]
        last = command[-1] if isinstance(command, list) else command
        assert last.split()[:2] == ["python", "-m"]
        assert last.split()[3] == name


def test_params_yaml_is_complete_and_nothing_beside_it_is_known() -> None:
    assert list(load_yaml("params.yaml")) == list(Config.model_fields)
    Config.from_params(read_params(ROOT / "params.yaml"), "params.yaml")


def test_params_yaml_is_the_demo_configuration_but_for_registered_batches() -> None:
    params, demo = deepcopy(load_yaml("params.yaml")), resolve("demo", ROOT / "configs")
    for section in ("batches", "mix"):
        assert params.pop(section).items() >= demo.pop(section).items()
    assert params == demo


def sections_read(stage: str) -> set[str]:
    """Sections of params.yaml that the command of a stage takes: the `.get("…")` of the function that runs it."""
    package = ROOT / ENTRY[stage].split(".")[0]
    (command,) = (
        node
        for path in (package / "__main__.py", *(package / "commands").glob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name in (stage, f"{stage}_")
    )
    calls = [node for node in ast.walk(command) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return {ast.literal_eval(call.args[0]) for call in calls if call.func.attr == "get"}


@pytest.mark.parametrize("stage", ENTRY)
def test_params_are_the_sections_that_the_command_of_the_stage_reads(stage: str) -> None:
    expected = set().union(*(PARTS.get((stage, section), {section}) for section in sections_read(stage)))
    listed = [
        param if isinstance(param, str) else "; ".join(f"{file}: {', '.join(keys)}" for file, keys in param.items())
        for param in stage_body(stage)["params"]
    ]
    assert set(listed) == expected
    assert len(listed) == len(expected)


@pytest.mark.parametrize("stage", ENTRY)
def test_no_module_of_a_stage_reads_params_yaml_behind_its_command(stage: str) -> None:
    for file in import_closure(ENTRY[stage]):
        names = {node.id for node in nodes_of(ROOT / file) if isinstance(node, ast.Name)}
        assert file in READERS or not names & {"read_params", "read_section", "read_batches"}, file


def test_shards_depend_on_their_version_their_batch_and_what_they_are_made_from_alone() -> None:
    body = stage_body("shard")
    assert body["params"] == [{"versions.yaml": ["shard"]}]
    assert body["deps"] == ["batches/${key}.yaml", "${item}"]
    assert load_yaml("versions.yaml") == {"shard": VERSION}


def test_the_graph_is_as_short_as_it_is_meant_to_be() -> None:
    assert len((ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines()) < 160


def test_the_stages_that_read_every_encoder_depend_on_those_of_params_yaml_and_no_others(tmp_path: Path) -> None:
    config = Config.from_params(read_params(ROOT / "params.yaml"), "params.yaml")
    check_graph(config, ROOT / "dvc.yaml")
    student = {"student": EncoderParams(model="models/ace", network="student")}
    other = {"swin": EncoderParams(model="models/swin", network="teacher")}
    for more, message in (
        (student, r"evaluate.deps has .*data/answers/student"),
        (other, r"cohort.deps .*models/swin; evaluate.deps has .*data/answers/swin"),
    ):
        changed = config.model_copy(update={"encoders": {**config.encoders, **more}})
        with pytest.raises(ConfigError, match=message):
            check_graph(changed, ROOT / "dvc.yaml")
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    (tmp_path / "dvc.yaml").write_text(
        text.replace("data/answers/imagenet", "data/answers/imagenet, data/answers/student")
    )
    check_graph(config.model_copy(update={"encoders": {**config.encoders, **student}}), tmp_path / "dvc.yaml")


def test_commands_find_the_lines_of_dvc_yaml_that_they_edit() -> None:
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    encoders = Config.from_params(read_params(ROOT / "params.yaml"), "params.yaml").encoders
    student = {"student": EncoderParams(model="models/other", network="student")}
    batch, excluded = f"{SHARDS}other-b000", exclusion_dep("phantom-b000")
    with_batch = add_deps(text, "other-b000")
    with_exclusion = set_dep(text, excluded, "phantom-b000", wanted=True)
    with_encoder, _ = with_encoders(text, {**encoders, **student})
    with_task, _ = with_tasks(text, ["phantom"])
    deps = {
        one: {path: [stage for stage, paths in deps_of(edited).items() if path in paths] for path in paths}
        for one, edited, paths in (
            ("batch", with_batch, (batch,)),
            ("exclusion", with_exclusion, (excluded,)),
            ("encoder", with_encoder, ("models/other", "data/answers/student")),
            ("task", with_task, ("metrics/finetune/phantom.json",)),
        )
    }
    assert deps == {
        "batch": {batch: ["pretrain", "variant", "report"]},
        "exclusion": {excluded: [name for name, paths in deps_of(text).items() if {*TEMPLATES, PHANTOM_SET} & paths]},
        "encoder": {"models/other": ["cohort", "finetune"], "data/answers/student": ["evaluate", "decide", "explore"]},
        "task": {"metrics/finetune/phantom.json": ["report"]},
    }
    assert drop_deps(with_batch, {batch}) == text
    assert set_dep(with_exclusion, excluded, "phantom-b000", wanted=False) == text
    assert deps_of(with_encoders(with_encoder, encoders)[0]) == deps_of(text)
    assert with_tasks(with_task, [])[0] == text


def deps_of(text: str) -> dict[str, set[str]]:
    stages = YAML(typ="safe", pure=True).load(text)["stages"]
    return {name: set(stage.get("do", stage)["deps"]) for name, stage in stages.items()}


def test_a_model_that_was_imported_for_another_grid_is_refused_before_any_work(tmp_path: Path) -> None:
    config = Config.from_params(read_params(ROOT / "params.yaml"), "params.yaml")
    import_timm(config.imports["imagenet"], 4, tmp_path / "models/other", where="imports")
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    encoders = {**config.encoders, "other": EncoderParams(model="models/other", network="teacher")}
    with pytest.raises(ConfigError, match=r"models/other was imported for 4 tokens.* grid.t is 8; .*--tokens 8"):
        check_graph(config.model_copy(update={"encoders": encoders}), tmp_path / "dvc.yaml")


def test_a_run_goes_on_with_the_code_that_its_stage_depends_on() -> None:
    code = {dep for dep in stage_body("pretrain")["deps"] if dep.split("/")[0] in PACKAGES}
    assert set(CODE) == code


def test_the_phantom_has_the_settings_of_params_yaml() -> None:
    batch = read_batch("phantom-b000", ROOT)
    assert (batch.grid, batch.shard) == settings_of(load_yaml("params.yaml"), ROOT / "params.yaml")


def test_every_consumer_depends_on_every_batch_of_the_mix() -> None:
    batches = {f"data/shards/{name}" for name in load_yaml("params.yaml")["mix"]}
    for stage in ("pretrain", "variant", "report"):
        assert {dep for dep in stage_body(stage)["deps"] if dep.startswith("data/shards/")} == batches


def test_commands_run_as_modules_so_that_a_temporary_copy_runs_its_own_code() -> None:
    for name in ENTRY:
        commands = stage_body(name)["cmd"]
        for command in commands if isinstance(commands, list) else [commands]:
            assert command.startswith("python -m ")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_named_configurations_are_valid(path: Path) -> None:
    Config.from_params(resolve(path.stem, ROOT / "configs"), path.name)
