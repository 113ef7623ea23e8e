"""Names of what lies in a model folder, and the versions of its format."""

from typing import Literal

FORMAT_VERSION = 4
READ_VERSIONS = (3, FORMAT_VERSION)
"""Models of version 3 have no whitening."""
CONFIG, CARD = "config.json", "README.md"
IMPORTED: Literal["imported"] = "imported"
"""`origin` in config.json of a model that others trained, and the name of the one normalisation that it has."""
WHITENING = "whitening.weight"
"""Name of the map of tokens among a finished backbone's tensors; models trained without it have none."""
Which = Literal["teacher", "student", "best"]
"""`best` is the teacher at the step at which the probe scored it highest; without a probe there is none."""
WEIGHTS: dict[str, str] = {
    "teacher": "teacher_backbone.safetensors",
    "student": "student_backbone.safetensors",
    "best": "best_teacher_backbone.safetensors",
}
HEADS = "heads.safetensors"
