"""The stage `import`: weights that others trained become a model folder that evaluation, embedding and export read.

Two kinds of files are taken: those of the method's authors, every key of which has to be what the original naming says
(`import_checkpoint`), and those of any architecture that timm has (`import_timm`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from ace.models.backbone import Backbone, build_backbone, check_backbone, stride_of
from ace.models.folder import CARD, CONFIG, FORMAT_VERSION, IMPORTED, WEIGHTS
from ace.models.foreign import StateDict, read_state_dict
from ace.models.model_config import ImportedConfig, ImportSource, MixedBatch, ModelParams, NetworkSection
from ace.models.notice import NOTICE
from ace.models.params import BackboneParams, FileWeightsParams, ImportParams, PackageWeightsParams
from ace.models.tensors import write_tensors
from ace.models.weights import WeightsReport, check_weights, load_initial_weights
from ace.published.naming import Family, KeyMap, map_keys
from shards.core.errors import ConfigError, GridError
from shards.core.grid import GridSpec, Scale
from shards.core.normalisation import Levels, Normalisation, text_of
from shards.core.params import MixParams
from shards.format.layout import sha256_of
from shards.runtime.atomic import atomic_directory, write_text

DERIVED = ("relative_position_index", "relative_coords_table", "attn_mask")
"""Names of the tables that follow from an architecture and its image size, which many files carry all the same."""

_CARD = """\
---
library_name: timm
license: other
tags: [medical-imaging, ACE]
---
# Imported encoder ({backbone})

Weights that others trained and published, taken over for the input below. This project did not train them: which images
they saw, for how long and with which settings is not known here. Their publisher's licence applies to them.

| | |
|---|---|
| backbone | `{backbone}`{model_args}, {in_channels} channel(s), {num_parameters:,} parameters |
| input | {crop_px} × {crop_px} px, {t} × {t} tokens {stride_px} px apart |
| normalisation | pixels in [0, 1] minus {mean}, over {std} |
| made from | `{file}`, sha256 `{sha256}`, {nest} |
| resampled for this input | {num_adapted} tensors |
| left out | {num_derived} tables that follow from the architecture, {num_heads} tensors of heads: see `config.json` |

`teacher_backbone.safetensors` is the encoder. There is no student, no head and no training log. No file holds pickled
code. Normalisation and input size were given at the import; the file does not state them.

{notice}
"""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A backbone as the authors published it, and the input it is for.

    Attributes:
        family: Whose key names the file has.
        name: timm's name of the architecture.
        spec: Grid; the image side is `spec.crop_px`.
        model_args: Further arguments of the architecture.
    """

    family: Family
    name: str
    spec: GridSpec
    model_args: Mapping[str, Any] = field(default_factory=dict)


def _grid(cell_px: int) -> GridSpec:
    """Return the paper's grid: 14×14 tokens, half the overlap, jitter to 85 % of the area."""
    return GridSpec(n=32, cell_px=cell_px, t=14, scales=(Scale(2, 2, 1.0),), min_overlap=0.5, min_jitter_area=0.85)


ARCHITECTURES = {
    "swin_b": Architecture(family="swin", name="swin_base_patch4_window7_224", spec=_grid(32)),
    "vit_b": Architecture(family="vit", name="vit_base_patch32_224", spec=_grid(32)),
    "vit_b16": Architecture(family="vit", name="vit_base_patch16_224", spec=_grid(16)),
}


def import_checkpoint(
    path: Path,
    out: Path,
    architecture: Architecture,
    *,
    network: Literal["teacher", "student"],
    mean: Levels,
    std: Levels,
) -> KeyMap:
    """Convert a checkpoint and write the model folder, whole or not at all; returns what each key of the file was.

    Args:
        path: File of the authors: `network` → keys below `backbone.` in the original naming, or a bare state dict.
        out: Folder of the model; must not exist.
        architecture: What the file holds.
        network: Which of its networks becomes the encoder.
        mean: Subtracted from pixels in [0, 1], as in the encoder's training: one number, or one for each channel.
        std: Pixels are divided by it after; likewise.

    Raises:
        NoSpaceError: the disk has too little room, or is full.
        ConfigError: `out` exists, the file cannot be read, or a tensor is unknown, missing, of another shape, or not
            finite; the encoder has another number of channels than `mean` or `std`.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; choose another --out or remove it")
    mix = MixParams.from_params({"weight": 1.0, "mean": mean, "std": std}, "normalisation")
    state = read_state_dict(path, nests=(network, "state_dict", "model"))
    keys = map_keys(state.tensors, architecture.family)
    in_channels = _in_channels(path, state)
    Normalisation(mix.mean, mix.std).per_channel(in_channels, "normalisation", "give --mean and --std accordingly")
    backbone = {"name": architecture.name, "model_args": dict(architecture.model_args), "in_channels": in_channels}
    backbone |= {"token_activation": "identity", "drop_path": 0.0, "weights": None}
    params = BackboneParams.from_params(backbone, f"{path}: backbone")
    built = build_backbone(params, architecture.spec)
    _load(built.model, state.tensors, keys, path)
    heads = (*keys.heads, *state.beside)
    source = ImportSource(
        file=path.name, sha256=sha256_of(path), nest=state.nest, adapted=(), derived=keys.derived, heads=heads
    )
    _write(out, built, params, architecture.spec, mix, source)
    return KeyMap(keys.weights, keys.derived, heads)


def one_import(
    path: Path,
    architecture: str,
    model_args: Mapping[str, Any],
    *,
    in_channels: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> ImportParams:
    """Return the section for a single file of weights, with timm's normalisation of the architecture by default.

    Args:
        path: The file.
        architecture: timm's name of what it holds.
        model_args: Further arguments of the architecture.
        in_channels: Channels of the input, 1 or 3.
        mean: Subtracted from pixels in [0, 1], one number or one for each channel; None for timm's.
        std: Pixels are divided by it after; likewise.

    Raises:
        ConfigError: there is no such file, or no normalisation is given and timm knows none for so many channels.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file of weights")
    if mean is None or std is None:
        known = timm.get_pretrained_cfg(architecture) if timm.is_model(architecture) else None
        if known is None or in_channels != len(known.mean):
            raise ConfigError(
                f"{path}: no normalisation is known for '{architecture}' with {in_channels} channel(s); give --mean "
                "and --std as the encoder was trained with, and the architecture as timm.list_models() has it"
            )
        mean, std = mean or known.mean, std or known.std
    own = Normalisation.of(mean, std).per_channel(in_channels, str(path), "give --mean and --std accordingly")
    weights = {"kind": "file", "path": str(path), "sha256": sha256_of(path), "min_share": 1.0}
    values = {"name": architecture, "model_args": dict(model_args), "in_channels": in_channels, **own._asdict()}
    return ImportParams.from_params(values | {"weights": weights}, str(path))


def import_timm(params: ImportParams, t: int, out: Path, *, where: str) -> WeightsReport:
    """Take over weights of any architecture that timm has, and write the model folder, whole or not at all.

    The input is t tokens a side, as far apart as the architecture's stride. Position embeddings and tables of a
    network for another image size are resampled by timm's own function of the architecture.

    Args:
        params: A section of `imports`.
        t: Tokens per crop side of the grid on whose crops the encoder is used.
        out: Folder of the model; one that is there is replaced.
        where: Opens messages, as `imports.imagenet`.

    Returns:
        What became of every tensor.

    Raises:
        NoSpaceError: the disk has too little room, or is full.
        ConfigError: as for `check_import`; the file cannot be read, or is of another architecture.
    """
    backbone, spec = params.backbone, check_import(params, t, where=where)
    with torch.random.fork_rng(devices=[]):  # what is random at first is replaced
        built = build_backbone(backbone, spec)
    report = load_initial_weights(built, backbone)
    assert report is not None
    beyond = _beyond(built.model, report.unused)
    if report.missing or beyond:
        wrong = "leave part of it random" if report.missing else f"have more than it: {', '.join(beyond[:5])}"
        raise ConfigError(
            f"{where}: the weights are not those of {params.name} {params.model_args or ''}: they {wrong}; choose "
            f"the architecture that they were trained in\n{report}"
        )
    derived = tuple(key for key in report.unused if key.endswith(DERIVED))
    source = ImportSource(
        file=_file_name(params),
        sha256=report.sha256,
        nest=report.nest,
        adapted=tuple(str(entry) for entry in report.adapted),
        derived=derived,
        heads=tuple(key for key in report.unused if key not in derived),
    )
    mix = MixParams(weight=1.0, mean=params.mean, std=params.std)
    _write(out, built, backbone, spec, mix, source)
    return report


def check_import(params: ImportParams, t: int, *, where: str) -> GridSpec:
    """Check what can be known of an import without reading weights into a network.

    Args:
        params: A section of `imports`.
        t: Tokens per crop side of the grid.
        where: Opens messages.

    Returns:
        The encoder's own grid, whose cells are as wide as its stride.

    Raises:
        ConfigError: timm has no such architecture or refuses its arguments, it does not give t × t tokens, or the
            weights are missing or others.
    """
    try:
        spec = GridSpec(
            n=2 * t,
            cell_px=stride_of(params.backbone),
            t=t,
            scales=(Scale(1, 1, 1.0),),
            min_overlap=0.5,
            min_jitter_area=0.85,
        )
        check_backbone(params.backbone, spec)
        check_weights(params.backbone)
    except (ConfigError, GridError) as error:
        raise ConfigError(f"{where}: {error}") from None
    return spec


def _write(
    out: Path, built: Backbone, params: BackboneParams, spec: GridSpec, mix: MixParams, source: ImportSource
) -> None:
    """Write the folder of an encoder that others trained."""
    config = ImportedConfig(
        format_version=FORMAT_VERSION,
        origin=IMPORTED,
        source=source,
        params=ModelParams(
            pretrain=NetworkSection(backbone=params.model_copy(update={"weights": None})),
            grid=spec,
            batches={IMPORTED: MixedBatch(mix=mix)},
        ),
        versions={name: version(name) for name in ("torch", "timm")},
    )
    num_parameters = sum(parameter.numel() for parameter in built.parameters())
    tensors = built.state_dict()
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    with atomic_directory(out, num_bytes) as finished:
        write_tensors(tensors, finished / WEIGHTS["teacher"])
        write_text(finished / CONFIG, config.to_text())
        write_text(finished / CARD, _card(config, num_parameters))


def _beyond(model: nn.Module, unused: Iterable[str]) -> list[str]:
    """Keys of parts that the network has as well, such as a block more: the file is of a larger network."""
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", {})
    classifier = config.get("classifier") or ()
    heads = tuple(f"{name}." for name in ((classifier,) if isinstance(classifier, str) else classifier))
    parts = {key.partition(".")[0] for key in model.state_dict()}
    return [
        key
        for key in unused
        if key.partition(".")[0] in parts and not key.endswith(DERIVED) and not (heads and key.startswith(heads))
    ]


def _file_name(params: ImportParams) -> str:
    """Name the weights where no path of this machine may stand."""
    match params.weights:
        case FileWeightsParams(path=path):
            return Path(path).name
        case PackageWeightsParams(package=package):
            return f"package {package}"
        case weights:
            return f"timm's {params.name}.{weights.tag}"


def _card(config: ImportedConfig, num_parameters: int) -> str:
    source, backbone, spec, mix = config.source, config.backbone, config.params.grid, config.mixes[IMPORTED]
    return _CARD.format(
        notice=NOTICE,
        backbone=backbone.name,
        model_args=f" {backbone.model_args}" if backbone.model_args else "",
        in_channels=backbone.in_channels,
        num_parameters=num_parameters,
        crop_px=spec.crop_px,
        t=spec.t,
        stride_px=spec.cell_px,
        mean=text_of(mix.mean),
        std=text_of(mix.std),
        file=source.file,
        sha256=source.sha256,
        nest=f"network `{source.nest}`" if source.nest else "its only network",
        num_adapted=len(source.adapted),
        num_derived=len(source.derived),
        num_heads=len(source.heads),
    )


def _in_channels(path: Path, state: StateDict) -> int:
    kernel = state.tensors.get("patch_embed.proj.weight")
    if kernel is None or kernel.ndim != 4 or kernel.shape[1] not in (1, 3):
        found = "is missing" if kernel is None else f"has the shape {tuple(kernel.shape)}"
        raise ConfigError(
            f"{path}: patch_embed.proj.weight {found}; expected (width, 1 or 3 channels, patch, patch): not a "
            "Swin or ViT in its original naming"
        )
    return kernel.shape[1]


def _load(model: nn.Module, tensors: Mapping[str, Tensor], keys: KeyMap, path: Path) -> None:
    """Load every tensor of the model from the file, and check that the file's tables equal the model's own."""
    given = {key: tensors[origin] for origin, key in keys.weights.items()}
    needed = model.state_dict()
    wrong = [f"{key} holds NaN or infinite numbers" for key, value in given.items() if not value.isfinite().all()]
    wrong += [f"{key} is missing" for key in needed if key not in given]
    wrong += [f"{key} has no place" for key in given if key not in needed]
    wrong += [
        f"{key} has the shape {tuple(value.shape)}, expected {tuple(needed[key].shape)}"
        for key, value in given.items()
        if key in needed and value.shape != needed[key].shape
    ]
    tables = dict(model.named_buffers())
    wrong += [
        f"{key} is another table than the architecture's at this image size"
        for key in keys.derived
        if key not in tables or not torch.equal(tables[key], tensors[key].to(tables[key].dtype))
    ]
    if wrong:
        raise ConfigError(
            f"{path}: not this architecture at this image size; {len(wrong)} tensors do not fit: "
            f"{'; '.join(wrong[:5])}; choose the architecture and size that the file was trained with"
        )
    model.load_state_dict(given)
