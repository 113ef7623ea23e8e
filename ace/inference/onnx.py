"""The encoder as an ONNX file: images in, embedding and tokens out, compared with torch before it is kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ace.inference.embedder import EmbeddingModel
from ace.inference.folder import new_folder
from ace.inference.traced import EmbeddingAndTokens, traced
from shards.core.errors import ConfigError

FILE = "model.onnx"
OPSET = 20
INPUT, OUTPUTS = "image", ("embedding", "tokens")
CHECKED_BATCHES = (1, 3)
"""Batch sizes of the comparison; neither is the one that the network is traced with."""


class ExportError(ConfigError):
    """The exported network does not compute what the model computes."""


@dataclass(frozen=True)
class Parity:
    """Holds how far ONNX Runtime is from torch on random inputs.

    Attributes:
        max_difference: Largest absolute one in any value of both outputs.
        tolerance: What was allowed.
    """

    max_difference: float
    tolerance: float


def export_onnx(model: EmbeddingModel, out: Path, *, tolerance: float) -> Parity:
    """Write `model.onnx`, opset 20, of any batch size, into a new folder.

    Its metadata says what images have to pass first (`ace.mean`, `ace.std`, `ace.crop_px`, `ace.channels`), whose
    weights they are, and how far ONNX Runtime is from torch. A model of more than 2 GB, which ONNX cannot hold in one
    file, is refused by the exporter.

    Args:
        model: On the CPU, where ONNX Runtime is compared with it.
        out: A folder that does not exist or is empty.
        tolerance: Largest allowed difference of any output value.

    Raises:
        ConfigError: the extra `export` is not installed, or the folder is not empty.
        NoSpaceError: the disk has too little room, or is full.
        ExportError: the difference is above the tolerance; nothing is written.
    """
    _check_installed()
    network = EmbeddingAndTokens(model.encoder.backbone).eval()
    size = (model.preprocessing.channels, model.preprocessing.crop_px, model.preprocessing.crop_px)
    with new_folder(out, model) as folder:
        program = torch.onnx.export(
            traced(network, size),
            input_names=[INPUT],
            output_names=OUTPUTS,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        if program is None:
            raise ExportError("torch's exporter gave no program")
        program.save(folder / FILE, external_data=False)
        difference = _max_difference(network, folder / FILE, size)
        if not difference <= tolerance:
            raise ExportError(
                f"ONNX Runtime differs from torch by {difference:.3g} on random inputs, allowed are {tolerance:g}; "
                "nothing is written. Try another release of torch, or allow more if your use of the tokens bears it"
            )
        about = {**model.describe(), "max_difference_to_torch": difference, "opset": OPSET}
        _describe(folder / FILE, {f"ace.{name}": str(value) for name, value in about.items()})
    return Parity(difference, tolerance)


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"ONNX export needs {error.name}, which is not installed: pip install 'ace-pretraining[export]'"
        ) from None


def _max_difference(network: EmbeddingAndTokens, path: Path, size: tuple[int, int, int]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for batch in CHECKED_BATCHES:
        images = torch.randn(batch, *size, generator=generator)
        with torch.inference_mode():
            expected = [output.cpu().numpy() for output in network(images.to(next(network.parameters()).device))]
        found = session.run(list(OUTPUTS), {INPUT: images.numpy()})
        # np.max, unlike max, hands NaN on.
        largest = float(np.max([largest, *(np.abs(a - b).max() for a, b in zip(expected, found, strict=True))]))
    return largest


def _describe(path: Path, about: Mapping[str, str]) -> None:
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, dict(about))
    # The exporter numbers its variables; the only one in sight is the batch.
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, path)
