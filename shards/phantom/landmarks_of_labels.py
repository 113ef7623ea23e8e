"""Anatomical points of the segmented CT, found once when the asset is prepared (needs scipy)."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

from shards.phantom.labels import (
    AORTA,
    CLAVICLE_LEFT,
    CLAVICLE_RIGHT,
    HEART,
    HUMERUS_LEFT,
    HUMERUS_RIGHT,
    LIVER,
    LUNG_LEFT,
    LUNG_RIGHT,
    RIBS_LEFT,
    RIBS_RIGHT,
    SCAPULA_LEFT,
    SCAPULA_RIGHT,
    SPINAL_CORD,
    SPINE,
    SPLEEN,
    STERNUM,
    STOMACH,
    TRACHEA,
    VERTEBRAE,
)  # fmt: skip

Points = npt.NDArray[np.float64]
LEFT, FRONT, UP = np.eye(3)
LOBES = {"left_upper": 10, "left_lower": 11, "right_upper": 12, "right_middle": 13, "right_lower": 14}
NUM_VESSEL_POINTS = 12
VESSEL_SPACING_MM = 24.0
VESSEL_WALL_MM = 9.0


def find_landmarks(
    hu: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8], origin: Points, spacing: Points
) -> dict[str, Points]:
    """Find millimetre positions (left, front, up) by name; `hu` has the slices of the even `labels` only."""
    return dict(_landmarks(hu, labels, origin, spacing))


def _landmarks(
    hu: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8], origin: Points, spacing: Points
) -> Iterator[tuple[str, Points]]:
    def points(*wanted: int) -> Points:
        return origin + spacing * np.argwhere(np.isin(labels, wanted))

    spine = points(*SPINE)
    for side, ribs in (("left", RIBS_LEFT), ("right", RIBS_RIGHT)):
        for number, label in enumerate(ribs, start=1):
            rib = points(label)
            if len(rib) == 0:
                continue
            start, end, along = _ends(rib, spine)
            yield f"rib_{side}_{number:02d}_posterior", start
            yield f"rib_{side}_{number:02d}_middle", along
            yield f"rib_{side}_{number:02d}_anterior", end
    cord = points(*SPINAL_CORD)
    for name, label in VERTEBRAE.items():
        yield f"vertebra_{name}", _body_center(points(label), cord)
    for side, sign, clavicle, scapula, humerus, lung, below in (
        ("left", 1, CLAVICLE_LEFT, SCAPULA_LEFT, HUMERUS_LEFT, LUNG_LEFT, STOMACH + SPLEEN),
        ("right", -1, CLAVICLE_RIGHT, SCAPULA_RIGHT, HUMERUS_RIGHT, LUNG_RIGHT, LIVER),
    ):
        yield f"clavicle_{side}_medial", extreme(points(*clavicle), -sign * LEFT)
        yield f"clavicle_{side}_lateral", extreme(points(*clavicle), sign * LEFT)
        yield f"scapula_{side}_inferior", extreme(points(*scapula), -UP)
        yield f"humerus_{side}_head", points(*humerus).mean(0)
        yield f"lung_{side}_apex", extreme(points(*lung), UP)
        yield f"lung_{side}_costophrenic", extreme(points(*lung), sign * LEFT - UP)
        yield f"lung_{side}_lateral", extreme(points(*lung), sign * LEFT)
        yield f"diaphragm_{side}_dome", extreme(points(*below), UP)
        yield from _vessel_points(side, hu, np.isin(labels[..., ::2], lung), origin, spacing * (1, 1, 2))
    for name, lobe in LOBES.items():
        yield f"lobe_{name}_centre", points(lobe).mean(0)
    heart = points(*HEART)
    yield "heart_apex", extreme(heart, LEFT - UP)
    yield "heart_left", extreme(heart, LEFT)
    yield "heart_right", extreme(heart, -LEFT)
    yield "heart_top", extreme(heart, UP)
    aorta = points(*AORTA)
    yield "aorta_arch_top", extreme(aorta, UP)
    yield "aorta_knob", extreme(aorta[aorta[:, 2] > aorta[:, 2].max() - 30], LEFT)
    yield "sternum_top", extreme(points(*STERNUM), UP)
    yield "sternum_bottom", extreme(points(*STERNUM), -UP)
    yield "carina", _carina(np.isin(labels, TRACHEA), origin, spacing)


def extreme(points: Points, direction: Points, num: int = 40) -> Points:
    """Average the points that lie furthest in a direction: one voxel alone would be noise.

    All that tie with the last one count: which of them a sort puts first differs between processors.
    """
    reach = points @ direction
    return points[reach >= np.partition(reach, -num)[-num]].mean(0)  # type: ignore[no-any-return]


def _body_center(vertebra: Points, cord: Points) -> Points:
    """Find the centre of the vertebra's body: of what lies in front of the cord, slice by slice."""
    heights = np.unique(cord[:, 2])
    cord_front = np.array([cord[cord[:, 2] == height, 1].max() for height in heights])
    slices = np.searchsorted(heights, vertebra[:, 2] - 1e-6).clip(max=len(heights) - 1)
    return vertebra[vertebra[:, 1] > cord_front[slices]].mean(0)  # type: ignore[no-any-return]


def _ends(rib: Points, spine: Points) -> tuple[Points, Points, Points]:
    """Start at the spine, end at the front, and half way between, measured along the rib."""
    rib = rib[:: max(1, len(rib) // 4000)]
    to_spine, _ = cKDTree(spine[::7]).query(rib)
    graph = cKDTree(rib).sparse_distance_matrix(cKDTree(rib), 6.0)
    along = dijkstra(graph, indices=int(np.argmin(to_spine)))
    reached = np.isfinite(along)
    rib, along = rib[reached], along[reached]
    length = along.max()
    near, far = along < 4, along > length - 4
    middle = np.abs(along - length / 2) < 3
    return rib[near].mean(0), rib[far].mean(0), rib[middle].mean(0)


def _vessel_points(
    side: str, hu: npt.NDArray[np.float32], lung: npt.NDArray[np.bool_], origin: Points, spacing: Points
) -> Iterator[tuple[str, Points]]:
    """Yield thick vessels inside the lung, away from its wall and from one another, numbered from the top."""
    smooth = ndimage.gaussian_filter(np.where(lung, hu, -900), 2.0 / spacing)
    smooth[ndimage.distance_transform_edt(lung, spacing) < VESSEL_WALL_MM] = -1000
    chosen: list[Points] = []
    for index in np.argsort(smooth, axis=None)[::-1]:
        place = origin + spacing * np.array(np.unravel_index(index, smooth.shape))
        if all(np.linalg.norm(place - other) > VESSEL_SPACING_MM for other in chosen):
            chosen.append(place)
        if len(chosen) == NUM_VESSEL_POINTS:
            break
    for number, place in enumerate(sorted(chosen, key=lambda place: -place[2]), start=1):
        yield f"vessel_{side}_{number:02d}", place


def _carina(trachea: npt.NDArray[np.bool_], origin: Points, spacing: Points) -> Points:
    """Find where the airway parts: between the two bronchi of the highest slice that shows two."""
    for z in range(trachea.shape[2] - 1, -1, -1):
        parts, num = ndimage.label(trachea[..., z])
        if num == 2 and np.bincount(parts.ravel())[1:].min() > 20:
            centers = np.array(ndimage.center_of_mass(parts > 0, parts, [1, 2]))
            row, col = centers.mean(0)
            place: Points = origin + spacing * np.array([row, col, z])
            return place
    raise ValueError("the trachea's label never parts in two: not the expected segmentation")
