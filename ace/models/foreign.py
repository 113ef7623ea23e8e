"""State dicts out of files that others wrote: read without running code, unnested, wrappers' prefixes removed."""

import argparse
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from shards.core.errors import ConfigError

NESTS = ("teacher", "state_dict_ema", "model_ema", "state_dict", "model", "student")
"""Keys below which a file may hold its tensors; the first one present counts."""
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile put before every key."""
ENCLOSURES = ("backbone.", "model.")
"""Prefixes of the keys of a backbone among those of heads; outermost first."""


@dataclass(frozen=True)
class StateDict:
    """The tensors of a backbone in a file.

    Attributes:
        tensors: By key, without the prefixes of wrappers and enclosures.
        beside: Keys, as in the file, of what does not belong to the backbone.
        nest: Where in the file they lie, as `teacher` or `teacher.state_dict`; empty for its top.
    """

    tensors: Mapping[str, Tensor]
    beside: tuple[str, ...]
    nest: str


def read_state_dict(path: Path, nests: Sequence[str] = NESTS) -> StateDict:
    """Read the backbone's tensors from a `.safetensors` file or in one that `torch.save` wrote.

    Args:
        path: The file.
        nests: Keys to look below, by preference.

    Raises:
        ConfigError: it cannot be read without running code, or holds no tensors.
    """
    content, nest = _read(path), []
    while found := next((key for key in nests if isinstance(content.get(key), Mapping)), None):
        content = content[found]
        nest.append(found)
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ConfigError(
            f"{path}: no tensors{' in ' + '.'.join(nest) if nest else ''}, only {sorted(map(str, content))[:8]}; "
            f"expected a state dict, at the top or below one of {', '.join(nests)}"
        )
    names = {_without_wrappers(key): key for key in tensors}
    if len(names) < len(tensors):
        raise ConfigError(
            f"{path}: found keys that differ only in {' or '.join(WRAPPERS)}; expected one network: save it by itself"
        )
    for prefix in ENCLOSURES:
        if enclosed := {key.removeprefix(prefix): name for key, name in names.items() if key.startswith(prefix)}:
            names = enclosed
    kept = set(names.values())
    beside = tuple(str(key) for key in content if key not in kept)
    return StateDict({key: tensors[name] for key, name in names.items()}, beside, ".".join(nest))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            # Training scripts save their parsed arguments beside the weights: a class without behaviour.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{path}: not a readable file of weights: {type(error).__name__} {error}; expected .safetensors or "
            "torch.save's"
        ) from None
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{path}: refused, as it is no file of torch.save, or reading it would run code{_what_would_run(error)}. "
            "Save its tensors alone as .safetensors, on a machine where you trust the file"
        ) from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: holds a {type(content).__name__}; expected a state dict")
    return content


def _what_would_run(error: pickle.UnpicklingError) -> str:
    """Take the one name out of torch's page of advice, part of which is to run the code."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f" ({found[1]})" if found else ""


def _without_wrappers(key: str) -> str:
    while key.startswith(WRAPPERS):
        for prefix in WRAPPERS:
            key = key.removeprefix(prefix)
    return key
