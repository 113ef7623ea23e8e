"""Co-segmentation: clusters of dense tokens over several patients against the masks of structures (method.md §5)."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field

from ace.embed.embedder import Embedder
from ace.properties.base import Answers, Evidence, Figure, Measurement, NotMeasured, Property, Reading, Setting
from ace.protocol.cohort import Subject, choose_rows
from ace.protocol.dense import LocationAxis
from ace.protocol.features import CanvasView, Features, views_of
from ace.protocol.intervals import mean, per_patient
from shards.core.config import Section
from shards.reading.reader import ShardReader

IOU, DICE = "cosegmentation_iou", "cosegmentation_dice"
NUM_SHUFFLES = 20
"""Shuffled assignments whose mean is the chance level."""
NUM_STARTS = 3
"""Starts of k-means, of which the best one counts."""
Clusters = Int[np.ndarray, "patients locations locations"]
Mask = Bool[np.ndarray, "locations locations"]
Masks = Bool[np.ndarray, "patients structures locations locations"]
Counts = Int[np.ndarray, "patients clusters structures"]


class CosegmentationParams(Section):
    """Dense tokens of several patients, clustered jointly."""

    num_patients: int = Field(ge=2)
    """Patients with masks whose tokens are clustered."""
    num_clusters: int = Field(ge=2)
    """Clusters of k-means."""


def cluster_tokens(tokens: Float[np.ndarray, "tokens dim"], num_clusters: int, seed: int) -> Int[np.ndarray, " tokens"]:
    """Cluster directions of tokens by k-means; fewer different tokens than clusters make fewer clusters."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        means = KMeans(num_clusters, n_init=NUM_STARTS, random_state=seed)
        found: Int[np.ndarray, " tokens"] = means.fit_predict(tokens)
    return found


def overlaps(clusters: Clusters, masks: Masks, num_clusters: int) -> Counts:
    """Count each patient's locations in every cluster that lie inside every structure."""
    is_in = clusters.reshape(len(clusters), 1, -1) == np.arange(num_clusters)[:, None]
    inside = masks.reshape(*masks.shape[:2], -1)
    counts: Counts = np.einsum("pkl,psl->pks", is_in.astype(np.float32), inside.astype(np.float32)).astype(np.int64)
    return counts


@dataclass(frozen=True)
class Match:
    """The cluster with the largest IoU with each structure over all patients, and their sizes in locations.

    Attributes:
        cluster: Of each structure.
        shared: Locations in both, by patient and structure.
        sizes: Locations in the structure, plus those in the cluster.
    """

    cluster: Int[np.ndarray, " structures"]
    shared: Int[np.ndarray, "patients structures"]
    sizes: Int[np.ndarray, "patients structures"]

    @property
    def iou(self) -> Float[np.ndarray, " structures"]:
        """Intersection over union of each structure with its cluster, over all patients."""
        shared, sizes = self.shared.sum(axis=0), self.sizes.sum(axis=0)
        found: Float[np.ndarray, " structures"] = shared / (sizes - shared)
        return found

    @property
    def dice(self) -> Float[np.ndarray, " structures"]:
        """Twice the intersection over the sum of the sizes, likewise."""
        found: Float[np.ndarray, " structures"] = 2 * self.shared.sum(axis=0) / self.sizes.sum(axis=0)
        return found


def match(clusters: Clusters, masks: Masks, num_clusters: int) -> Match:
    """Match every structure with one cluster; a cluster may be matched with several structures, or with none."""
    counts = overlaps(clusters, masks, num_clusters)
    in_cluster = np.stack([(clusters == number).sum(axis=(1, 2)) for number in range(num_clusters)], axis=1)
    in_structure = masks.sum(axis=(2, 3))
    sizes = in_cluster[:, :, None] + in_structure[:, None, :]
    shared = counts.sum(axis=0)
    cluster = (shared / (sizes.sum(axis=0) - shared)).argmax(axis=0)
    structure = np.arange(masks.shape[1])
    return Match(cluster, counts[:, cluster, structure], sizes[:, cluster, structure])


def shuffled(clusters: Clusters, rng: np.random.Generator) -> Clusters:
    """Move every patient's locations about at random, so that clusters keep their sizes in each patient."""
    return rng.permuted(clusters.reshape(len(clusters), -1), axis=1).reshape(clusters.shape)


@dataclass(frozen=True, kw_only=True)
class CosegmentationMeasurement(Measurement):
    """Patients with masks.

    Attributes:
        setting: The patients.
        params: The property's section.
        subjects: Those whose tokens are clustered.
        structures: Names of the masks.
        masks: Whether the centre of each location of the dense tokens lies inside.
    """

    setting: Setting
    params: CosegmentationParams
    subjects: tuple[Subject, ...]
    structures: tuple[str, ...]
    masks: Masks

    def dense_views(self) -> Sequence[CanvasView]:
        """Every patient's canvas."""
        return views_of(subject.key for subject in self.subjects)

    def ask(self, embedder: Embedder, features: Features) -> Answers:
        """Return the cluster of every location [patients, locations, locations]."""
        tokens = np.stack([features.of(view) for view in self.dense_views()])
        found = cluster_tokens(tokens.reshape(-1, tokens.shape[-1]), self.params.num_clusters, self.setting.seed)
        return {"clusters": found.reshape(tokens.shape[:-1]).astype(np.int16)}

    def read(self, answers: Answers) -> Mapping[str, Reading]:
        """Average IoU and Dice over the structures; resampled patients keep the clusters and their matches."""
        found, chances = self._match(answers), self._chances(answers)
        num, facts = len(self.subjects), {"num_structures": len(self.structures)}
        unions = found.sizes - found.shared
        iou = mean([per_patient(*column) for column in zip(found.shared.T, unions.T, strict=True)])
        dice = mean([per_patient(2 * own, sizes) for own, sizes in zip(found.shared.T, found.sizes.T, strict=True)])
        return {
            IOU: Reading(
                measure=iou, num_patients=num, chance=float(np.mean([chance.iou for chance in chances])), facts=facts
            ),
            DICE: Reading(
                measure=dice, num_patients=num, chance=float(np.mean([chance.dice for chance in chances])), facts=facts
            ),
        }

    def details(self, answers: Answers) -> Mapping[str, Reading]:
        """Give each structure's IoU with its cluster."""
        found, chances = self._match(answers), np.mean([chance.iou for chance in self._chances(answers)], axis=0)
        unions = found.sizes - found.shared
        return {
            structure: Reading(
                measure=per_patient(found.shared[:, column], unions[:, column]),
                num_patients=len(self.subjects),
                chance=float(chances[column]),
            )
            for column, structure in enumerate(self.structures)
        }

    def pictures(self, answers: Mapping[str, Answers], features: Mapping[str, Features]) -> Answers:
        """Keep the first canvases, their structures as numbers (−1 where there is none), and each encoder's clusters.

        A cluster that is matched with structures has the number of the one with the largest IoU, and others have
        numbers above those of all structures.
        """
        num = min(self.setting.num_examples, len(self.subjects))
        numbers = np.where(self.masks[:num].any(axis=1), self.masks[:num].argmax(axis=1), -1)
        arrays: dict[str, Any] = {
            "canvases": np.stack([subject.canvas for subject in self.subjects[:num]]),
            "structures": np.array(self.structures),
            "masks": numbers,
        }
        for name, answer in answers.items():
            found = self._match(answer)
            number_of = len(self.structures) + np.arange(self.params.num_clusters)
            for structure in np.argsort(found.iou, kind="stable"):
                number_of[found.cluster[structure]] = structure
            arrays[f"{name}_clusters"] = number_of[answer["clusters"][:num]]
        return arrays

    def _match(self, answers: Answers) -> Match:
        return match(answers["clusters"], self.masks, self.params.num_clusters)

    def _chances(self, answers: Answers) -> list[Match]:
        """Match shuffled assignments."""
        rng = self.setting.generator("cosegmentation")
        return [
            match(shuffled(answers["clusters"], rng), self.masks, self.params.num_clusters) for _ in range(NUM_SHUFFLES)
        ]


class Cosegmentation(Property):
    """Compares clusters of dense tokens with the masks of structures.

    The tokens at all locations of several patients' canvases are clustered together by k-means, without any mask. Each
    structure that all of these patients have is matched with the one cluster whose IoU with it is largest, over all
    patients and at the centres of locations. Chance is the mean over shuffled assignments, in which every patient's
    locations change places and the matches are made anew; a collapsed encoder, with one cluster, scores exactly that.
    """

    name = "cosegmentation"
    params = CosegmentationParams
    title = "Co-segmentation"
    question = "Do clusters of tokens follow anatomy across {many}?"
    headline = IOU
    unit = "mean best IoU of a cluster with a structure"
    figures: ClassVar[Mapping[str, Figure]] = {
        IOU: Figure(
            title="Cosegmentation: best IoU of a cluster, mean over structures",
            number="{:.3f}",
            group="cosegmentation",
            summary="best IoU",
        ),
        DICE: Figure(title="Cosegmentation: Dice of the same clusters", number="{:.3f}", summary="Dice"),
    }
    text = (
        "The tokens of several {many}' images are clustered together by k-means, without any mask. Each structure is "
        "then matched with the one cluster that overlaps it best over all of these {many}. Chance is the same with the "
        "locations of every image shuffled. A structure that is split into several clusters, or shares one with "
        "another structure, scores low."
    )

    def plan(self, setting: Setting, params: CosegmentationParams) -> CosegmentationMeasurement | NotMeasured:
        """Read the masks of the first patients that have some, and keep the structures that all of these show."""
        found = read_masks(setting, params.num_patients)
        names = sorted(set.intersection(*(set(masks) for _, masks in found))) if found else []
        if len(found) < 2 or not names:
            return NotMeasured(
                f"fewer than two {setting.cohort.split} patients of this batch have structures marked, or none is "
                "marked in all who have some"
            )
        masks = np.array([[own[name] for name in names] for _, own in found])
        return CosegmentationMeasurement(
            setting=setting,
            params=params,
            subjects=tuple(subject for subject, _ in found),
            structures=tuple(names),
            masks=masks,
        )

    def shown(self, evidence: Evidence) -> dict[str, Any]:
        """Show masks beside the clusters of every encoder."""
        from ace.drawing.pictures import data_uri, encoder_label, label_map, tile_row

        def tile(labels: np.ndarray, alt: str) -> str:
            return f'<img class="tile pixels" src="{data_uri(label_map(labels, len(names)))}" alt="{alt}">'

        arrays, pictures = evidence.arrays, []
        names = arrays["structures"].tolist()
        for number, canvas in enumerate(arrays["canvases"]):
            image = f'<img class="tile" src="{data_uri(canvas, kind="jpeg")}" alt="Image {number + 1}">'
            tiles = [("image", image), ("masks", tile(arrays["masks"][number], "Masks"))]
            for at, name in enumerate(evidence.encoders):
                tiles.append((encoder_label(name, at), tile(arrays[f"{name}_clusters"][number], "Clusters")))
            pictures.append(tile_row(tiles))
        colours = label_map(np.arange(len(names))[None], len(names))[0]
        legend = "".join(
            f'<span class="named"><i style="background: #{bytes(colour).hex()}"></i>{name.replace("_", " ")}</span> '
            for name, colour in zip(names, colours, strict=True)
        )
        note = (
            "Where structures overlap, the mask that is drawn is the first by name. Clusters have the colour of the "
            "structure they are matched with; grey ones are matched with none."
        )
        return {"pictures": [f'<p class="note">{legend}</p>', *pictures], "note": note}


def read_masks(setting: Setting, num_patients: int) -> list[tuple[Subject, dict[str, Mask]]]:
    """Read the masks of the first patients that have some, at the centres of locations; empty ones are left out."""
    reader = ShardReader(setting.index)
    rows = choose_rows(setting.index, setting.cohort.split, setting.max_patients, setting.seed)
    found = []
    for subject, row in zip(setting.cohort.subjects, rows.tolist(), strict=True):
        masks = {name: at_locations(mask, setting.axis) for name, mask in reader.read(row).masks().items()}
        masks = {name: mask for name, mask in masks.items() if mask.any()}
        if masks:
            found.append((subject, masks))
        if len(found) == num_patients:
            break
    return found


def at_locations(mask: Bool[np.ndarray, "height width"], axis: LocationAxis) -> Mask:
    """Tell whether the pixel at the centre of each location lies inside the mask."""
    places = axis.positions_px.astype(int)
    inside: Mask = mask[np.ix_(places, places)]
    return inside
