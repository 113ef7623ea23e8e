"""The lines of dvc.yaml by which stages depend on every encoder and on every task of params.yaml."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from ace.embed.opening import EncoderParams
from ace.report.tasks import FIGURES, figures_path
from shards.delivery.yaml_lines import set_deps

MODELS, ANSWERS, TASKS = ("models/", "registry/"), ("data/answers/",), (f"{FIGURES.as_posix()}/",)
"""Beginnings of the paths of models, of their answers, and of the figures of tasks; registry/ has the incumbent."""
Deps = dict[str, tuple[tuple[str, ...], list[str]]]
"""Stage → how the paths begin that it depends on, and the paths."""


def encoder_deps(encoders: Mapping[str, EncoderParams]) -> Deps:
    """Map the stages that read every encoder to what they depend on for them: how the paths begin, and the paths."""
    models = list(dict.fromkeys(item.model for item in encoders.values() if item.model.startswith(MODELS)))
    answers = [f"{ANSWERS[0]}{name}" for name in encoders]
    return {
        "cohort": (MODELS, models),
        "evaluate": (ANSWERS, answers),
        "decide": (ANSWERS, answers),
        "finetune": (MODELS, models),
        "explore": (ANSWERS, answers),
    }


def task_deps(tasks: Iterable[str]) -> Deps:
    """Map the stages that read the figures of every task to what they depend on for them, likewise."""
    return {"report": (TASKS, [figures_path(name, Path()).as_posix() for name in tasks])}


def with_encoders(text: str, encoders: Mapping[str, EncoderParams]) -> tuple[str, list[str]]:
    """Make the stages of a dvc.yaml that read every encoder depend on these and no others.

    Returns:
        The text, and for each stage that changed what it depends on now.

    Raises:
        ConfigError: the stages' deps are not written as lists of lines.
    """
    return _with_deps(text, encoder_deps(encoders))


def with_tasks(text: str, tasks: Iterable[str]) -> tuple[str, list[str]]:
    """Make the stages of a dvc.yaml that read the figures of every task depend on these and no others, likewise."""
    return _with_deps(text, task_deps(tasks))


def _with_deps(text: str, deps: Deps) -> tuple[str, list[str]]:
    changed = []
    for stage, (prefixes, paths) in deps.items():
        text, earlier = set_deps(text, stage, prefixes, paths), text
        if text != earlier:
            changed.append(f"{stage} depends on {', '.join(paths) or f'nothing of {prefixes[0]}'}")
    return text, changed
