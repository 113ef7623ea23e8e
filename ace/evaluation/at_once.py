"""All stages of the evaluation in one process, for a model or a set beside those of params.yaml."""

from collections.abc import Mapping

from ace.embed.opening import EncoderParams
from ace.evaluation.cohort import choose_cohort
from ace.evaluation.evaluate import evaluate
from ace.evaluation.measure import measure
from ace.evaluation.params import EvaluateParams
from ace.evaluation.setting import StagePaths
from shards.core.params import MeasuredParams


def evaluate_at_once(
    params: EvaluateParams,
    encoders: Mapping[str, EncoderParams],
    paths: StagePaths,
    measured: MeasuredParams | None = None,
) -> None:
    """Run the stages `cohort`, `measure` of every encoder, and `evaluate`, one after another.

    Args:
        params: The section `evaluate`.
        encoders: The section `encoders`.
        paths: Where the stages read and write.
        measured: The batch's own mean and std, for models that were not trained with it.
    """
    choose_cohort(params, encoders, paths)
    for name, encoder in encoders.items():
        measure(name, encoder, params, paths, measured)
    evaluate(params, encoders, paths)
