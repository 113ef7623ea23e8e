"""Parameters of the networks: parts of the section `pretrain` of params.yaml."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shards.core.config import Section

WholeForm = Literal["mlp", "linear", "mean"]
PartForm = Literal["mlp", "linear"]
LocalForm = Literal["mlp", "linear", "identity"]
TokenActivation = Literal["identity", "relu"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
"""The precision of matrix products; with `tf32` an accelerator rounds factors of 32 bits to 11 significant bits."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class InitialWeightsSection(Section):
    """Weights that the student's backbone starts from, instead of random ones."""

    min_share: float = Field(gt=0, le=1)
    """Least share of the backbone's parameters that the weights must give; with less the run is refused."""


class TimmWeightsParams(InitialWeightsSection):
    """Weights that timm publishes for the backbone's architecture; downloaded when the run starts."""

    kind: Literal["timm"]
    """Names the source of the weights."""
    tag: str = Field(min_length=1)
    """timm's tag of the weights, as `ms_in22k`: `timm.list_pretrained("swin_base_patch4_window7_224*")` lists them,
    after the dot."""
    sha256: Sha256 | None
    """Digest over names, types, shapes and bytes of the tensors, as the report of a run prints it; null accepts what
    timm serves on the day."""


class FileWeightsParams(InitialWeightsSection):
    """Weights of a file; it is read without running code."""

    kind: Literal["file"]
    """Names the source of the weights."""
    path: str = Field(min_length=1)
    """A `.safetensors` file, or a file that `torch.save` wrote."""
    sha256: Sha256
    """sha256 of the file, so that a changed file is noticed."""


class PackageWeightsParams(InitialWeightsSection):
    """Weights that an installed Python package carries as a file; the file is read and no code of the package runs."""

    kind: Literal["package"]
    """Names the source of the weights."""
    package: str = Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
    """Name of the package as pip knows it; it holds exactly one file of weights."""
    sha256: Sha256
    """sha256 of that file, so that another release of the package is noticed."""


InitialWeightsParams = Annotated[
    TimmWeightsParams | FileWeightsParams | PackageWeightsParams, Field(discriminator="kind")
]


class BackboneParams(Section):
    """An image encoder from timm that yields t×t tokens at crop size."""

    name: str
    """timm's name of the architecture, as `vit_tiny_patch16_224` or `swin_base_patch4_window7_224`."""
    model_args: dict[str, Any]
    """Further arguments of the architecture, as `{depth: 6, class_token: false}`; sizes, channels and heads are set
    from the grid and may not stand here."""
    in_channels: Literal[1, 3]
    """Channels of an input image; grey images are repeated for 3, colour images turned to grey for 1."""
    token_activation: TokenActivation
    """Function that tokens pass after the last norm; the paper's is `identity`. `relu` makes them non-negative, so that
    what parts add to a whole cannot cancel."""
    drop_path: float = Field(ge=0, lt=1)
    """Stochastic depth of the student at its last block; the teacher has none."""
    weights: InitialWeightsParams | None
    """Weights that the student starts from; null starts from random ones."""


class ImportParams(Section):
    """An encoder that others trained and published, measured as it is: nothing of it is trained here."""

    name: str
    """timm's name of the architecture, as `tf_efficientnet_lite0`."""
    model_args: dict[str, Any]
    """Further arguments of the architecture, as `{output_stride: 16}`, which makes its tokens denser. The input has t
    tokens a side and follows from them: `img_size` may not stand here."""
    in_channels: Literal[1, 3]
    """Channels of an input image; grey images are repeated for 3, colour images turned to grey for 1."""
    mean: tuple[float, ...]
    """Subtracted from pixels in [0, 1], one number for each channel."""
    std: tuple[Annotated[float, Field(gt=0)], ...]
    """Pixels are divided by it after, one number for each channel, above 0."""
    weights: InitialWeightsParams
    """The published weights; they have to give every tensor of the encoder."""

    @model_validator(mode="after")
    def _one_level_for_each_channel(self) -> "ImportParams":
        if (len(self.mean), len(self.std)) != (self.in_channels, self.in_channels):
            raise ValueError(
                f"mean has {len(self.mean)} numbers and std {len(self.std)}, in_channels is {self.in_channels}; "
                "give one of each for every channel"
            )
        return self

    @property
    def backbone(self) -> BackboneParams:
        """The encoder as a backbone: tokens as they leave its last norm, without stochastic depth."""
        return BackboneParams(
            name=self.name,
            model_args=self.model_args,
            in_channels=self.in_channels,
            token_activation="identity",
            drop_path=0.0,
            weights=self.weights,
        )


class GlobalHeadParams(Section):
    """3-layer MLP, L2-norm, weight-normalised last layer."""

    hidden_dim: int = Field(ge=1)
    """Width of the two hidden layers; the paper's is 2048."""
    bottleneck_dim: int = Field(ge=1)
    """Width of the L2-normalised embedding; the paper's is 256."""
    out_dim: int = Field(ge=2)
    """Number of prototypes; the paper's is 65,536."""


class LocalHeadParams(Section):
    """Per-token map from backbone tokens to tokens of the same width, L2-normalised."""

    form: LocalForm
    """`linear` has one layer; `identity` puts the matching losses on the backbone's tokens themselves."""
    hidden_dim: int = Field(ge=1)
    """Width of the hidden layer of `mlp`, here and in Composer and Decomposer; unused by `linear` and `mean`."""


class LogitParams(Section):
    """Cosines become logits: `scale · cosine + bias`, one pair for each matching loss."""

    scale: float = Field(gt=0)
    """At the start; the authors keep 1/0.07."""
    bias: float
    """At the start; the authors have none (0)."""
    learnable: bool
    """Lets the optimiser move both (the scale by its logarithm, so that it stays positive)."""
