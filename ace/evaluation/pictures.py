"""What the report draws, as plain arrays: the first examples of the cohort's random order, none picked by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ace.data.crops import resample
from ace.evaluation.cohort import Subject
from ace.evaluation.composition import CompositionCosines, CompositionPlan
from ace.evaluation.correspondence import (
    Features,
    LocationAxis,
    Pair,
    Points,
    affine_oracle,
    errors_at_reference,
    interpolate,
    points_of,
)
from ace.evaluation.decomposition import DecompositionEmbeddings, DecompositionPlan, remove_and_cut
from ace.evaluation.embedding import Image
from ace.evaluation.intervals import estimate
from ace.evaluation.removal import Removal, change_outside, erased_length, shown_region
from shards.runtime.atomic import atomic_path

Arrays = dict[str, Any]
NUM_CANDIDATES_SHOWN = 4


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write one .npz atomically, without pickled objects."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def composition_arrays(
    canvases: Sequence[Image], plan: CompositionPlan, cosines: Mapping[str, CompositionCosines], size_px: int
) -> Arrays:
    """All cosines of every encoder, and the first mismatched region with its own and the other parts."""

    def crops(place: int) -> tuple[Image, Image]:
        canvas, region = canvases[plan.patient[place]], plan.regions[place]
        whole = resample(canvas, region.window(len(canvas)), size_px)
        return whole, np.stack([resample(canvas, part.window(len(canvas)), size_px) for part in region.quadrants()])

    first, second = plan.mismatches[0]
    (whole, parts), (_, other_parts) = crops(first), crops(second)
    arrays: Arrays = {"example_whole": whole, "example_parts": parts, "example_other_parts": other_parts}
    for name, answer in cosines.items():
        arrays |= {f"{name}_true": answer.true, f"{name}_mismatched": answer.mismatched}
        arrays[f"{name}_example"] = np.array([answer.true[first], answer.mismatched[0]])
    return arrays


def decomposition_arrays(
    canvases: Sequence[Image],
    plan: DecompositionPlan,
    embeddings: Mapping[str, DecompositionEmbeddings],
    size_px: int,
    num_examples: int,
) -> Arrays:
    """The first queries of the first draw: the image with its region set to black, and the best candidates by cosine.

    Per encoder: `_best` are the candidates' crops, `_cosine` their cosines, `_is_right` which one is the removed
    region, and `_rank` the place of the right one among all candidates, 1 for the first.
    """
    patients, choices = plan.patients[0], plan.choices[0]
    without, regions = [], []
    for patient, choice in zip(patients, choices, strict=True):
        canvas = canvases[patient]
        image = resample(canvas, (0, 0, len(canvas), len(canvas)), size_px)
        removed, region = remove_and_cut(image, plan.regions[patient][choice])
        without.append(removed)
        regions.append(region)
    shown = np.arange(min(num_examples, len(patients)))
    arrays: Arrays = {
        "without": np.stack(without)[shown],
        "removed": np.stack(regions)[shown],
        "place": np.array([plan.regions[patients[i]][choices[i]].pixels(size_px) for i in shown]),
    }
    for name, answer in embeddings.items():
        similarities = answer.similarities(patients, choices)[shown]
        order = np.argsort(-similarities, axis=1, kind="stable")
        best = order[:, :NUM_CANDIDATES_SHOWN]
        arrays[f"{name}_best"] = np.stack(regions)[best]
        arrays[f"{name}_cosine"] = np.take_along_axis(similarities, best, axis=1)
        arrays[f"{name}_is_right"] = best == shown[:, None]
        arrays[f"{name}_rank"] = 1 + (order == shown[:, None]).argmax(axis=1)
    return arrays


def removal_arrays(
    canvases: Sequence[Image],
    plan: DecompositionPlan,
    removals: Mapping[str, Removal],
    size_px: int,
    num_examples: int,
) -> Arrays:
    """Show what the first patients' tokens make of a region of moderate size that is set to black.

    `image` and `without` are crops, `place` is (row, col, side) of the square in pixels. Per encoder: `_change` is the
    length of each token's change over the mean token length of the whole image [examples, t, t]; `_erased_length` and
    `_change_outside` are the figures of the same names over all patients and regions (nan where nothing has a length).
    """
    patients = np.arange(min(num_examples, len(canvases)))
    numbers = np.array([shown_region(plan.regions[patient]) for patient in patients])
    regions = [plan.regions[patient][number] for patient, number in zip(patients, numbers, strict=True)]
    images = [resample(canvas, (0, 0, len(canvas), len(canvas)), size_px) for canvas in canvases[: len(patients)]]
    arrays: Arrays = {
        "image": np.stack(images),
        "without": np.stack([remove_and_cut(*pair)[0] for pair in zip(images, regions, strict=True)]),
        "place": np.array([region.pixels(size_px) for region in regions]),
    }
    for name, removal in removals.items():
        arrays[f"{name}_change"] = removal.relative_change[patients, numbers]
        arrays[f"{name}_erased_length"] = np.array(estimate(erased_length(removal), len(canvases)))
        arrays[f"{name}_change_outside"] = np.array(estimate(change_outside(removal), len(canvases)))
    return arrays


def correspondence_arrays(
    subjects: Sequence[Subject],
    axis: LocationAxis,
    pairs: Sequence[Pair],
    features: Mapping[str, Sequence[Features]],
    found: Mapping[str, Sequence[Points]],
    num_examples: int,
) -> Arrays:
    """Canvases with their features as colours, and where the landmarks of the first pairs were found.

    Per encoder: `_colours` (shown canvas, location row, location col, RGB), `_errors` of all landmarks of all pairs;
    per example pair i: `pair<i>_...` with images, names, points, and the cosine map of its first landmark.
    """
    shown = slice(0, num_examples)
    arrays: Arrays = {
        "canvases": np.stack([subject.canvas for subject in subjects[shown]]),
        "positions_px": axis.positions_px,
    }
    for name, answer in features.items():
        arrays[f"{name}_colours"] = _colours(answer[shown])
    if not pairs:
        return arrays
    canvas_px = len(subjects[0].canvas)
    ends = [(points_of(subjects[p.query], p.names), points_of(subjects[p.key], p.names)) for p in pairs]
    for name, answer in found.items():
        arrays[f"{name}_errors"] = np.concatenate(
            [errors_at_reference(points, true, canvas_px) for points, (_, true) in zip(answer, ends, strict=True)]
        )
    arrays["same_pixel_errors"] = np.concatenate(
        [errors_at_reference(source, true, canvas_px) for source, true in ends]
    )
    arrays["affine_oracle_errors"] = np.concatenate(
        [errors_at_reference(affine_oracle(source, true), true, canvas_px) for source, true in ends]
    )
    first_of_query = {pair.query: place for place, pair in reversed(list(enumerate(pairs))) if pair.names}
    for number, place in enumerate(sorted(first_of_query.values())[shown]):
        pair, (source, target) = pairs[place], ends[place]
        arrays |= {
            f"pair{number}_query": subjects[pair.query].canvas,
            f"pair{number}_key": subjects[pair.key].canvas,
            f"pair{number}_names": np.array(pair.names),
            f"pair{number}_source": source,
            f"pair{number}_target": target,
        }
        middle = len(pair.names) // 2
        arrays[f"pair{number}_probe"] = np.array(middle)
        for name in features:
            wanted = interpolate(features[name][pair.query], axis, source[middle : middle + 1])[0]
            arrays[f"pair{number}_{name}_found"] = found[name][place]
            arrays[f"pair{number}_{name}_map"] = features[name][pair.key] @ wanted
    return arrays


def _colours(features: Sequence[Features]) -> Float[np.ndarray, "canvases locations locations 3"]:
    """The three strongest principal components over all canvases, stretched to [0, 1]: equal colour, alike token."""
    stacked = np.stack(features)
    vectors = stacked.reshape(-1, stacked.shape[-1]).astype(np.float64)
    vectors -= vectors.mean(axis=0)
    _, axes = np.linalg.eigh(vectors.T @ vectors)
    projected = vectors @ axes[:, :-4:-1]
    low, high = np.percentile(projected, [2, 98], axis=0)
    spread = np.where(high > low, high - low, 1)
    colours: Float[np.ndarray, "vectors 3"] = np.clip((projected - low) / spread, 0, 1)
    return colours.astype(np.float32).reshape(*stacked.shape[:-1], -1)
