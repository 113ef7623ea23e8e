"""The lines of dvc.yaml by which stages depend on every encoder of params.yaml."""

from collections.abc import Mapping

from ace.embed.opening import EncoderParams
from shards.delivery.yaml_lines import set_deps

MODELS, ANSWERS = ("models/", "registry/"), ("data/answers/",)
"""Beginnings of the paths of models and of their answers; registry/ has the incumbent."""


def encoder_deps(encoders: Mapping[str, EncoderParams]) -> dict[str, tuple[tuple[str, ...], list[str]]]:
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


def with_encoders(text: str, encoders: Mapping[str, EncoderParams]) -> tuple[str, list[str]]:
    """Make the stages of a dvc.yaml that read every encoder depend on these and no others.

    Returns:
        The text, and for each stage that changed what it depends on now.

    Raises:
        ConfigError: the stages' deps are not written as lists of lines.
    """
    changed = []
    for stage, (prefixes, paths) in encoder_deps(encoders).items():
        text, earlier = set_deps(text, stage, prefixes, paths), text
        if text != earlier:
            changed.append(f"{stage} depends on {', '.join(paths)}")
    return text, changed
