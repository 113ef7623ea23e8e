"""`report`, `explore`, `summary`: show what was measured, on pages and in the terminal."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ace.commands.evaluation import EVIDENCE, paths_of, with_folders
from ace.commands.options import PROPERTIES, add_shards_option
from shards.cli import add_params_options, values_of

if TYPE_CHECKING:
    from ace.report.tasks import TaskFigures

REPORT, EXPLORER = Path("reports/report.html"), Path("reports/explorer.html")
COMPARISON = Path("reports/comparison.html")


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `report`, `explore` and `summary` to the command line."""
    command = commands.add_parser("report", help="write the report", description=report.__doc__)
    add_params_options(command)
    add_shards_option(command)
    command.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="compare two encoders instead: two names of the section `encoders`, or two files of metrics or folders "
        "of studies, each with :NAME behind it for another encoder than its first",
    )
    command.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="TASK",
        help="also show a task that `python -m ace finetune` has run and params.yaml does not name; may be repeated",
    )
    command.add_argument(
        "--out", type=Path, metavar="FILE", help=f"the page; default: {REPORT}, with --compare {COMPARISON}"
    )
    command.set_defaults(run=report)

    command = commands.add_parser("explore", help="write the explorer", description=explore.__doc__)
    add_params_options(command)
    add_shards_option(command)
    command.add_argument("--out", type=Path, dest="page", default=EXPLORER, metavar="FILE", help=f"default: {EXPLORER}")
    command.set_defaults(run=explore)

    command = commands.add_parser("summary", help="print the key figures", description=summary.__doc__)
    command.set_defaults(run=summary)


def report(arguments: argparse.Namespace) -> None:
    """Write the report of the data, the training, the figures and the tasks: one HTML page that opens offline.

    With --compare, write a page that compares two encoders instead. They are two encoders of params.yaml that `dvc
    repro` has measured, compared patient by patient; or one each of two files of metrics or folders of studies, as
    studies/phantom, or studies/phantom:paper for another encoder than the first. Files of metrics hold figures and
    intervals, and nothing of single patients. Figures of tasks stand beside them: of those in the section `finetune`,
    or of those that lie in a folder `finetune` beside both files.
    """
    from ace.report.page import write_report
    from ace.report.params import ReportParams
    from ace.report.two_encoders import write_comparison

    if arguments.compare is None:
        values = values_of(arguments)
        params = ReportParams.from_params(values.get("report"), f"{arguments.params}: report")
        tasks = dict.fromkeys((*(values.get("finetune") or {}), *arguments.task))
        write_report(params, arguments.out or REPORT, tasks=list(tasks))
    else:
        out = arguments.out or COMPARISON
        figures, measured = _compared(arguments, *arguments.compare)
        print(write_comparison(figures, measured, out, _tasks_of_two(arguments, *arguments.compare)))
        print(f"report: {out.resolve()}")


def _tasks_of_two(arguments: argparse.Namespace, first: str, second: str) -> "list[TaskFigures]":
    """Read the figures of tasks of two encoders that `_compared` has found; of params.yaml its tasks that have run."""
    from ace.report.tasks import figures_path, read_task, task_of_two
    from ace.report.two_encoders import read_tasks_apart
    from shards.core.errors import ConfigError

    values = values_of(arguments) if arguments.params.is_file() else {}
    if first not in (values.get("encoders") or {}):
        if arguments.task:
            raise ConfigError(
                f"--task {arguments.task[0]}: found two files of metrics to compare, of which the page shows every "
                "task that lies beside both, in a folder `finetune`; leave --task out"
            )
        return read_tasks_apart(first, second)
    paths = {name: figures_path(name, arguments.params.parent) for name in values.get("finetune") or {}}
    paths = {name: path for name, path in paths.items() if path.is_file()}
    paths |= {name: figures_path(name, arguments.params.parent) for name in arguments.task}
    found = [task_of_two(read_task(path), first, second) for path in paths.values()]
    return [task for task in found if task is not None]


def _compared(arguments: argparse.Namespace, first: str, second: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Read the metrics of two encoders, and for each the section that says whom it was measured on."""
    from ace.evaluation.evaluate import evaluate
    from ace.evaluation.measured import MEASURED
    from ace.evaluation.params import EvaluateParams, parse_encoders
    from ace.report.two_encoders import read_apart
    from shards.core.errors import ConfigError
    from shards.runtime.scratch import scratch_root

    values = values_of(arguments) if arguments.params.is_file() else {}
    encoders = values.get("encoders") or {}
    if first == second:
        return read_apart(first, second)
    for name in (first, second):
        if name not in encoders and not Path(name.partition(":")[0]).exists():
            raise ConfigError(
                f"--compare {name}: no encoder of {arguments.params}, which has {', '.join(encoders) or 'none'}, and "
                "no file of metrics or folder of a study"
            )
    own = [name for name in (first, second) if name in encoders]
    if not own:
        return read_apart(first, second)
    if len(own) == 1:
        raise ConfigError(
            f"--compare {first} {second}: one is an encoder of {arguments.params} and the other a file or folder; "
            f"name the encoder's figures by their file too, as {PROPERTIES}:{own[0]}"
        )
    both = parse_encoders({name: encoders[name] for name in (first, second)}, f"--compare {first} {second}")
    params = EvaluateParams.from_params(values.get("evaluate"), f"{arguments.params}: evaluate")
    scratch_root().mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=scratch_root(), prefix="compared-") as folder:
        work = Path(folder)
        paths = replace(paths_of(arguments), metrics=work / PROPERTIES.name, evidence=work / EVIDENCE.name)
        evaluate(params, with_folders(both), paths)
        figures = json.loads(paths.metrics.read_text(encoding="utf-8"))
    return figures, dict.fromkeys((first, second), figures[MEASURED])


def explore(arguments: argparse.Namespace) -> None:
    """Write explorer.html: point at one patient's anatomy, and see where each encoder finds it in others.

    The page opens without a network, shows no key of an image, and is made of the tokens that `measure` kept.
    """
    from ace.evaluation.params import EvaluateParams, parse_encoders
    from ace.explorer.explore import explore

    values = values_of(arguments)
    params = EvaluateParams.from_params(values.get("evaluate"), f"{arguments.params}: evaluate")
    encoders = parse_encoders(values.get("encoders"), str(arguments.params))
    explore(params, with_folders(encoders), paths_of(arguments), arguments.page)


def summary(arguments: argparse.Namespace) -> None:
    """Print the key figures, each beside its chance level and the untrained encoder's."""
    from ace.report.summary import summary_table

    print(summary_table(PROPERTIES))
    print(f"report: {REPORT.resolve()}" if REPORT.is_file() else "report: not written yet; `dvc repro` writes it")
