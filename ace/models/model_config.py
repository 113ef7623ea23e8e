"""config.json of a model folder: its types, and the one place where it is written, read and validated."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ace.models.folder import CONFIG, IMPORTED, READ_VERSIONS
from ace.models.params import BackboneParams, Precision, Sha256
from shards.core.errors import ConfigError
from shards.core.grid import Grid
from shards.core.params import MixParams

Texts = Annotated[tuple[str, ...], Field(strict=False)]


class _Described(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class _Section(_Described):
    """A section of params.yaml as the training had it: what nobody reads of it is kept, and written again."""

    model_config = ConfigDict(extra="allow")


class LossWeightsSection(_Section):
    """Weights of the loss's terms.

    Attributes:
        global_: Global consistency.
        decomposition: Decomposition matching.
        composition: Composition matching.
        removal: Removal; models that are older than the term were trained without it.
    """

    global_: float = Field(alias="global")
    decomposition: float
    composition: float
    removal: float = 0.0


class EraseSection(_Section):
    """Erased parts of crops.

    Attributes:
        probability: Share of the crops of which parts were erased, in [0, 1].
        max_rectangles: Most parts of a crop; older models had one.
        max_aspect: Greatest ratio of a part's sides; parts of older models were square.
        fills: Fill → how often it was drawn, relative to the others; older models had black alone.
    """

    probability: float
    max_rectangles: int = 1
    max_aspect: float = 1.0
    fills: dict[str, float] = Field(default_factory=lambda: {"black": 1.0})


class AugmentSection(_Section):
    """Augmentation of crops.

    Attributes:
        erase: Erased parts of crops.
    """

    erase: EraseSection


class WhiteningSection(_Section):
    """The fit of the map of the finished encoders' tokens.

    Attributes:
        num_pairs: Crop pairs that it was fitted on.
        shrinkage: Part of the error's second moment that was taken as equal in all directions, in (0, 1].
    """

    num_pairs: int
    shrinkage: float


class NetworkSection(_Section):
    """A network section holds what has to be known of any model's network.

    Attributes:
        backbone: Architecture and input of the encoder.
        precision: What it was trained in; older models and those of others in fp32.
    """

    backbone: BackboneParams
    precision: Precision = "fp32"


class PretrainSection(NetworkSection):
    """The section `pretrain` of the training.

    Attributes:
        objective: Name of the objective; older models had the paper's alone.
        epochs: Epochs of the training.
        batch_size: Images of a step.
        loss_weights: Weights of the loss's terms.
        augment: Augmentation of crops.
        whitening: The fit of the map of tokens; None for models without one, as all of format 3.
        start_from: Folder of the model that the training started with; None for none.
    """

    objective: str = "ace"
    epochs: int
    batch_size: int
    loss_weights: LossWeightsSection
    augment: AugmentSection
    whitening: WhiteningSection | None = None
    start_from: str | None = None


class MixedBatch(_Described):
    """A batch that the model has a normalisation for.

    Attributes:
        mix: Its part in the training, with mean and standard deviation.
    """

    mix: MixParams


class ModelParams(_Described):
    """The parameters that any model has.

    Attributes:
        pretrain: Its network.
        grid: The grid whose crops it is shown.
        batches: Name → batch; an imported model has one normalisation for all, `IMPORTED`.
    """

    pretrain: NetworkSection
    grid: Grid
    batches: dict[str, MixedBatch]


class TrainedParams(ModelParams):
    """The parameters of a training.

    Attributes:
        pretrain: The section `pretrain`.
    """

    pretrain: PretrainSection


class SeenTar(_Described):
    """A tar of training images.

    Attributes:
        name: Name of its file.
        sha256: sha256 of its bytes.
    """

    name: str
    sha256: str


class SeenBatch(_Described):
    """A shard set that the model was trained on.

    Attributes:
        batch: Name of the batch.
        weight: Its weight in the mix.
        fingerprint: sha256 of its index.json.
        num_images: Training images.
        num_patients: Patients of them.
        patient_grouping: `image` where patients are unknown; None in older models, which counted all.
        kind: Name of its source; None in older models.
        shards: Its tars of training images; none in a published model.
    """

    batch: str
    weight: float
    fingerprint: str
    num_images: int
    num_patients: int
    patient_grouping: Literal["patient", "image"] | None = None
    kind: str | None = None
    shards: Annotated[tuple[SeenTar, ...], Field(strict=False)]

    @property
    def patients(self) -> str:
        """Number of patients in words, `unknown` where nobody knows them."""
        return "unknown" if self.patient_grouping == "image" else str(self.num_patients)


class BestStep(_Described):
    """The step at which the probe scored the teacher highest.

    Attributes:
        step: Finished steps.
        score: The probe's figure.
        metric: Its name in the log.
    """

    step: int
    score: float
    metric: str


class Hardware(_Described):
    """A machine, as the record of a training needs it: its products, and nothing that tells it from an equal one.

    Attributes:
        processor: Model of the processor.
        cores: Logical cores of the machine; None where it does not tell.
        memory_gb: Main memory of the machine, in 10^9 bytes.
        accelerators: Model of each accelerator.
    """

    processor: str
    cores: int | None
    memory_gb: float
    accelerators: Texts

    @property
    def text(self) -> str:
        """The machine in words, accelerators first."""
        counted = [f"{number} × {name}" for name, number in Counter(self.accelerators).items()]
        cores = "number of cores unknown" if self.cores is None else f"{self.cores} cores"
        return "; ".join([*counted, f"{self.processor}, {cores}, {self.memory_gb:g} GB of memory"])


class PublishedSection(_Described):
    """A published section holds what a published model says of itself.

    Attributes:
        name: Name to load it by.
        summary: What it is, in a sentence.
        saw: What it was trained on, in a sentence.
        dtype: Type of the stored weights.
        sha256: File of weights → sha256 of its bytes.
        figures: Encoder → figure → values, as metrics/properties.json has them.
        measured: Whose figures they are, as metrics/properties.json says it.
        terms: What the owners of the images ask for, as Markdown.
        version: Release that published it.
        min_cosine: Smallest cosine between its embeddings and those of the training's weights.
    """

    name: str
    summary: str
    saw: str
    dtype: Literal["float16", "float32"]
    sha256: dict[Annotated[str, Field(pattern=r"^\w+\.safetensors$")], Sha256]
    figures: dict[str, dict[str, dict[str, Any]]]
    measured: dict[str, Any]
    terms: str
    version: str
    min_cosine: float | None = None


class ImportSource(_Described):
    """The file that an imported model was made from.

    Attributes:
        file: Its name, without a path.
        sha256: Its sha256.
        nest: Where in it the tensors lay; empty for its top.
        adapted: Tensors that were resampled for the input.
        derived: Tables that were left out, since they follow from the architecture.
        heads: Tensors of heads that were left out.
    """

    file: str
    sha256: str
    nest: str
    adapted: Texts
    derived: Texts
    heads: Texts


class _ModelConfig(_Described):
    """A model configuration holds what config.json says of any model.

    Attributes:
        format_version: Version of the folder's format.
        params: Resolved parameters.
        versions: Library → the version that made the model.
    """

    format_version: int
    params: ModelParams
    versions: dict[str, str]

    @property
    def backbone(self) -> BackboneParams:
        """Architecture and input of the encoder."""
        return self.params.pretrain.backbone

    @property
    def mixes(self) -> dict[str, MixParams]:
        """Batch → its part in the training, with mean and standard deviation."""
        return {name: batch.mix for name, batch in self.params.batches.items()}

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as they were read or given: without the defaults of what was not."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def to_text(self) -> str:
        """Write the content of the file."""
        return json.dumps(self.to_json(), indent=2, sort_keys=True) + "\n"


class TrainedConfig(_ModelConfig):
    """config.json of a model that was trained here, published or not.

    Attributes:
        params: Resolved parameters of the training.
        shards: The shard sets that it saw.
        steps: Optimiser steps.
        best: The step at which the probe scored the teacher highest; None without a probe.
        num_processes: Processes that trained together.
        device: Kind of device that they computed on.
        hardware: The machine of the process that finished the training: of several processes the first's, and of a
            run that was resumed the last one. Its accelerators need not all have been used. None in older models.
        start_from: File of weights of the model that it started with → sha256; empty for none.
        code: Digest of the code that decides the result; None in older and in published models.
        commit: The git commit of the code; None likewise, and outside of a checkout.
        published: What a published model says of itself; None in all others.
    """

    params: TrainedParams
    shards: Annotated[tuple[SeenBatch, ...], Field(strict=False)]
    steps: int
    best: BestStep | None = None
    num_processes: int
    device: str
    hardware: Hardware | None = None
    start_from: dict[str, str] = Field(default_factory=dict)
    code: str | None = None
    commit: str | None = None
    published: PublishedSection | None = None


class ImportedConfig(_ModelConfig):
    """config.json of a model that others trained.

    Attributes:
        origin: Tells it from the others.
        source: The file that it was made from.
    """

    origin: Literal["imported"]
    source: ImportSource


ModelConfig = TrainedConfig | ImportedConfig


def read_config(model_dir: Path) -> ModelConfig:
    """Read config.json of a model folder and validate it.

    Raises:
        ConfigError: it is not there, is of a format that this release does not read, or is damaged.
    """
    path = model_dir / CONFIG
    if not path.is_file():
        raise ConfigError(f"{path}: not found; expected {model_dir} to be the folder of a model, as `dvc repro` writes")
    try:
        values = dict(json.loads(path.read_text(encoding="utf-8")))
        found = values.get("format_version")
        if found not in READ_VERSIONS:
            raise ConfigError(
                f"{path}: format_version {found}, this release reads {' and '.join(map(str, READ_VERSIONS))}; use "
                "the release that wrote the model (`versions` and dvc.lock say what it ran with), or train or import "
                "it again"
            )
        kind = ImportedConfig if values.get("origin") == IMPORTED else TrainedConfig
        return kind.model_validate(values)
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}: damaged ({_reason(error)}); restore the folder, as by `dvc checkout`") from None


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return f"{type(error).__name__}: {error}"
    first = error.errors()[0]
    if first["type"] == "missing":
        return f"{'.'.join(map(str, first['loc']))} is missing"
    return f"{'.'.join(map(str, first['loc']))} is {first['input']!r:.100}: {first['msg']}"
