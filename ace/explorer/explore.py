"""The stage `explore`: one offline page in which the anatomy of other patients answers to a pointer."""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from ace.drawing.pictures import data_uri
from ace.drawing.words import encoder_name
from ace.embed.opening import EncoderParams
from ace.evaluation.evaluate import read_told
from ace.evaluation.measure import read_arrays
from ace.evaluation.params import EvaluateParams
from ace.evaluation.setting import StagePaths, read_setting
from ace.explorer.tokens import compare, reduce_tokens
from ace.properties.base import Setting
from ace.properties.decomposition import (
    CHANGE_OUTSIDE,
    Decomposition,
    DecompositionMeasurement,
    DecompositionParams,
)
from ace.properties.explorer import Explorer, ExplorerMeasurement, ExplorerParams
from ace.properties.symmetry import counterpart
from ace.protocol.features import Features
from ace.protocol.regions import Region
from ace.protocol.removal import Removal
from shards.core.errors import ConfigError
from shards.runtime.atomic import write_text

FOLDER = Path(__file__).parent
STRETCH = (2, 98)
"""Percentiles of a component that have the darkest and the brightest level of its colour."""
MAX_BYTES = 20_000_000
BESIDE_TOKENS = 3_000_000
"""Bytes of a page that are kept for pictures, landmarks, and what is told of each encoder."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Shown are the patients of the page, and the squares at which every encoder was run on a picture without them.

    Attributes:
        setting: What the evaluation measured.
        params: The explorer's section.
        plan: The patients.
        removals: The squares of the whole cohort; None where decomposition is not measured.
    """

    setting: Setting
    params: ExplorerParams
    plan: ExplorerMeasurement
    removals: DecompositionMeasurement | None

    @classmethod
    def of(cls, params: EvaluateParams, setting: Setting) -> "Shown":
        """Plan what is shown, as `measure` did.

        Raises:
            ConfigError: the explorer has no section.
        """
        sections = {item.name: section for item, section in params.properties.chosen()}
        own, decomposition = sections.get(Explorer.name), sections.get(Decomposition.name)
        if not isinstance(own, ExplorerParams):
            raise ConfigError("evaluate.properties.explorer: not there, which says how many patients the page shows")
        removals = None
        if isinstance(decomposition, DecompositionParams):
            removals = Decomposition().plan(setting, decomposition)
        return cls(setting=setting, params=own, plan=Explorer().plan(setting, own), removals=removals)

    @property
    def in_cohort(self) -> list[int]:
        """Return where in the cohort each shown patient is."""
        keys = [subject.key for subject in self.setting.cohort.subjects]
        return [keys.index(subject.key) for subject in self.plan.subjects]

    def squares(self) -> list[tuple[Region, ...]]:
        """Return the squares of each shown patient, which the encoders saw removed."""
        return [() if self.removals is None else self.removals.anywhere.regions[at] for at in self.in_cohort]


def explore(params: EvaluateParams, encoders: Mapping[str, EncoderParams], paths: StagePaths, out: Path) -> None:
    """Write the page from the dense tokens that `measure` kept and the figures of `evaluate`; no network is run.

    Args:
        params: The section `evaluate`.
        encoders: The section `encoders`.
        paths: Where the stages of the evaluation have written.
        out: The HTML file.

    Raises:
        ConfigError: the explorer has no section, an encoder was not measured with it, or the page would be too large.
    """
    setting = read_setting(params, paths)
    shown = Shown.of(params, setting)
    figures = json.loads(paths.metrics.read_text(encoding="utf-8"))
    told = {name: read_told(name, encoder, params, paths) for name, encoder in encoders.items()}
    num_components = _num_components(shown, len(told))
    drawn = [
        _encoder(name, paths.answers / name, own, shown, figures[name], num_components) for name, own in told.items()
    ]
    page = _page(
        {
            "canvas_px": setting.cohort.spec.canvas_px,
            "cell_px": setting.cohort.spec.cell_px,
            "per_cell": params.dense.locations_per_cell,
            "positions": setting.axis.positions_px.tolist(),
            "one": "patient" if setting.index.dataset.patient_grouping == "patient" else "image",
            "batch": setting.cohort.batch,
            "num_mirrored": len(shown.plan.mirrored),
            "patients": _patients(shown),
            "encoders": [facts for facts, _ in drawn],
        },
        [tokens for _, tokens in drawn],
    )
    if len(page) > MAX_BYTES:
        raise ConfigError(
            f"explorer.html would have {len(page) / 1e6:.0f} MB with {len(encoders)} encoders, and more than "
            f"{MAX_BYTES / 1e6:.0f} do not open well: lower num_patients in evaluate.properties.explorer"
        )
    write_text(out, page)


def _num_components(shown: Shown, num_encoders: int) -> int:
    """Return how many components of each token the page has room for, at most those asked for and at least three."""
    num_canvases, side = len(shown.plan.dense_views()), len(shown.setting.axis.positions_px)
    room = (MAX_BYTES - BESIDE_TOKENS) * 3 // 4  # base64 has four letters for three bytes
    return max(3, min(shown.params.num_components, room // (num_encoders * num_canvases * side**2)))


def _encoder(
    name: str,
    answers: Path,
    told: Mapping[str, Any],
    shown: Shown,
    figures: Mapping[str, Any],
    num_components: int,
) -> tuple[dict[str, Any], bytes]:
    """Return what the page tells of an encoder, and the codes of its tokens."""
    features = Features.open(answers / "features" / told["features"])
    canvases = [features.of(view) for view in shown.plan.dense_views()]
    reduced = reduce_tokens(canvases, num_components)
    agreement = compare(canvases[: len(shown.plan.subjects)], reduced)
    facts: dict[str, Any] = {
        "name": encoder_name(name),
        "dim": canvases[0].shape[-1],
        "scales": reduced.scales.tolist(),
        "stretch": np.percentile(reduced.codes[..., :3], STRETCH, axis=(0, 1, 2)).tolist(),
        "kept": reduced.kept,
        "same": agreement.same,
        "near": agreement.near,
        "num_searches": agreement.num_searches,
    }
    if shown.removals is not None:
        own, at = read_arrays(answers / f"{Decomposition.name}.npz"), shown.in_cohort
        # Of a square by its number among a patient's, and so each cosine is with one square of each patient.
        cosines = np.einsum("ikd,jkd->ikj", own["queries_black"][at], own["candidates"][at])
        removal = Removal(whole=own["whole"], without=own["without"], change=own["change"], erased=own["erased"])
        facts |= {
            "removed": cosines.round(4).tolist(),
            "changed": removal.relative_change[at].round(2).tolist(),
            "outside": figures[CHANGE_OUTSIDE]["value"],
        }
    return facts, reduced.codes.tobytes()


def _patients(shown: Shown) -> list[dict[str, Any]]:
    """Return each patient's picture, landmarks and measured squares; no key of theirs."""
    return [
        {
            "image": data_uri(subject.canvas, kind="jpeg"),
            "landmarks": [
                [name.replace("_", " "), counterpart(name).replace("_", " "), round(row, 1), round(col, 1)]
                for name, (row, col) in sorted(subject.landmarks.items())
            ],
            "squares": [[round(region.row, 4), round(region.col, 4), round(region.side, 4)] for region in squares],
        }
        for subject, squares in zip(shown.plan.subjects, shown.squares(), strict=True)
    ]


def _page(data: Mapping[str, Any], tokens: list[bytes]) -> str:
    """Fill the template. Its policy lets nothing run or be fetched but what is in the file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("explorer.css", "explorer.js"))
    return environment.get_template("explorer.html").render(
        data=data,
        tokens=[base64.b64encode(codes).decode() for codes in tokens],
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _hash(text: str) -> str:
    """Return what a content security policy calls this very text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
