"""Figures of a task with their intervals: of every encoder, and what the first one gains over each other one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ace.downstream.base import Arrays, Score, Task
from ace.downstream.params import TaskParams
from ace.downstream.parts import Part
from ace.protocol.intervals import BootstrapParams, difference, estimate, interval, mean, patient_weights

Figures = dict[str, Any]
Use = tuple[str, str, str]
"""Names of the encoder, the method and the amount."""


def tabulate(task: Task[TaskParams], part: Part, truth: Arrays, answers: Mapping[Use, Sequence[Arrays]]) -> Figures:
    """Tell every figure as the mean over seeds, and the first encoder's gains, over the same resampled patients.

    Args:
        task: Scores the answers.
        part: The measured images.
        truth: What is known of them.
        answers: Use → the answers of each seed; uses of the first encoder come first.

    Returns:
        Encoder, or `gain_over_ENCODER` → method → amount → figure.
    """
    scored = {use: _mean_scores([task.scores(truth, own, part) for own in every]) for use, every in answers.items()}
    table: Figures = {}
    for (encoder, method, amount), scores in scored.items():
        told = {name: tell(score, part.num_patients, task.params.bootstrap) for name, score in scores.items()}
        table.setdefault(encoder, {}).setdefault(method, {})[amount] = told
    first = next(iter(table))
    for (encoder, method, amount), scores in scored.items():
        if encoder != first:
            best = scored[first, method, amount][task.headline]
            gain = Score(difference(best.measure, scores[task.headline].measure), None, {})
            told = {task.headline: tell(gain, part.num_patients, task.params.bootstrap)}
            table.setdefault(f"gain_over_{encoder}", {}).setdefault(method, {})[amount] = told
    return table


def tell(score: Score, num_patients: int, params: BootstrapParams) -> Figures:
    """Compute a figure and its bootstrap interval over patients, rounded, beside chance, n and facts."""
    value = estimate(score.measure, num_patients)
    if np.isnan(value):
        return {"value": None, "low": None, "high": None, "n": 0, "reason": "nothing to divide by"}
    # The same resamples for every figure of as many patients.
    weights = patient_weights(num_patients, params.num_resamples, np.random.default_rng(num_patients))
    low, high = interval(score.measure, weights, params.level)
    numbers = {"value": value, "low": low, "high": high}
    if score.chance is not None:
        numbers["chance"] = score.chance
    return {name: round(number, 5) for name, number in numbers.items()} | {"n": num_patients, **score.facts}


def _mean_scores(every: Sequence[Mapping[str, Score]]) -> dict[str, Score]:
    """Compute each figure's mean over the seeds, whose measured images are the same."""
    return {
        name: Score(mean([scores[name].measure for scores in every]), score.chance, score.facts)
        for name, score in every[0].items()
    }
