"""The one map from image and depth to the scanned chest: images, masks and landmarks all follow it.

`warp_grid` evaluates beam, pose and shape on a coarse raster; everything else interpolates that raster linearly, so
what is projected and what is inverted is the same piecewise trilinear function.
"""

import numpy as np
import numpy.typing as npt

from shards.phantom.patients import FIELD_KNOTS, Exposure, Patient

Points = npt.NDArray[np.float64]

MIDDLE_MM = np.array([-8.0, -5.0, -160.0])
"""Pivot of pose and shape, in millimetres of the scan (left, front, up; the top of the scan is 0)."""
HALF_DEPTH_MM = 135.0
DETECTOR_MM = 178.0
"""Distance from the pivot to the detector, in mm."""
DEPTH_MARGIN_MM = 10.0
DOME_MM = -195.0
DOME_WIDTH_MM = 55.0
HEART_MM = np.array([22.0, 20.0, -150.0])
HEART_REACH_MM = np.array([98.0, 80.0, 90.0])
"""Growth of the heart moves nothing outside of this ellipsoid: the chest wall stays."""
HEART_GAIN = np.array([0.62, 0.2, 0.14])
"""Relative growth of the heart's core for a heart parameter of 1."""
FIELD_BOX_MM = np.array([[-190.0, -340.0, -145.0], [175.0, 10.0, 140.0]])
"""Corners of the random field's box: left, up, front."""
NUM_NEWTON_STEPS = 30
GRID_NODES = (36, 36, 18)
"""Rows, columns, depths of the coarse raster."""


def depth_range_mm(patient: Patient) -> float:
    """Return half the thickness of the slab that rays are summed over, about the pivot, in mm."""
    return float(HALF_DEPTH_MM * patient.scale[1] + DEPTH_MARGIN_MM)


def path_length(patient: Patient, exposure: Exposure, rows: Points, cols: Points) -> Points:
    """Return the millimetres that each ray travels through the slab, as [rows, cols].

    `rows` and `cols` are positions in the image, from 0 to 1.
    """
    side = exposure.field_of_view_mm
    across = np.hypot(side * (rows - 0.5)[:, None], side * (cols - 0.5)[None, :])
    return 2 * depth_range_mm(patient) * np.hypot(1, across / exposure.source_distance_mm)


def warp_grid(patient: Patient, exposure: Exposure) -> Points:
    """Return the [*GRID_NODES, 3] points of the scan (mm) at the nodes of the grid.

    The nodes span the image (row, col) and the slab (back to front).
    """
    row, col, depth = (np.linspace(0, 1, num) for num in GRID_NODES)
    half = depth_range_mm(patient)
    front = (2 * depth - 1)[None, None, :] * half
    toward = 1 if exposure.view == "PA" else -1
    detector = toward * DETECTOR_MM
    source = detector - toward * exposure.source_distance_mm
    share = (front - source) / (detector - source)
    side = exposure.field_of_view_mm
    # The image's upper edge, followed to the pivot's depth, meets the top of the scan.
    share_at_pivot = -source / (detector - source)
    center_up = -MIDDLE_MM[2] * patient.scale[2] + exposure.top_edge_mm - share_at_pivot * side / 2
    left = share * side * (col - 0.5)[None, :, None]
    up = center_up + share * side * (0.5 - row)[:, None, None]
    room = np.stack(np.broadcast_arrays(left, front, up), axis=-1)
    return shape_to_scan(patient, room @ rotation(exposure.rotation_deg))


def rotation(degrees: npt.NDArray[np.float64]) -> Points:
    """Return the rotation matrix of pitch, roll and yaw."""
    (cp, cr, cy), (sp, sr, sy) = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    pitch = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    roll = np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])
    yaw = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return yaw @ roll @ pitch  # type: ignore[no-any-return]


def shape_to_scan(patient: Patient, body: Points) -> Points:
    """Convert points of the patient to points of the scan (mm about the pivot, last axis left, front, up)."""
    left, front, up = np.moveaxis(body / patient.scale, -1, 0)
    left = left * (1 + patient.taper * up / 150)
    left = left + patient.scoliosis_mm * np.sin(np.pi * up / 200 + patient.scoliosis_phase)
    front = front + patient.kyphosis_mm * ((up / 120) ** 2 - 0.5)
    scan = np.stack([left, front, up], axis=-1) + MIDDLE_MM

    lift = patient.diaphragm_mm + patient.diaphragm_side_mm * np.tanh(left / 40)
    scan[..., 2] -= lift * np.exp(-(((scan[..., 2] - DOME_MM) / DOME_WIDTH_MM) ** 2))
    scan = scan + smooth_field(patient.field_mm, scan)
    offset = scan - HEART_MM
    share = np.sum((offset / HEART_REACH_MM) ** 2, axis=-1, keepdims=True)
    near = (1 - np.minimum(share, 1) ** 2) ** 2
    return scan - patient.heart * HEART_GAIN * near * offset  # type: ignore[no-any-return]


def smooth_field(knots_mm: Points, scan: Points) -> Points:
    """Return a cubic B-spline displacement whose standard deviation is that of its control values."""
    weights = []
    for axis, (num, place) in enumerate(zip(FIELD_KNOTS, (scan[..., 0], scan[..., 2], scan[..., 1]), strict=True)):
        low, high = FIELD_BOX_MM[:, axis]
        knot = (place - low) / (high - low) * (num - 1)
        distance = np.abs(np.clip(knot, 0, num - 1)[..., None] - np.arange(num))
        spline = np.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, np.clip(2 - distance, 0, None) ** 3 / 6)
        weights.append(spline / np.sqrt(0.479))
    along_left, along_up, along_front = weights
    plane = along_left[..., :, None] * along_up[..., None, :]
    num_planes = FIELD_KNOTS[0] * FIELD_KNOTS[1]
    profiles = plane.reshape(-1, num_planes) @ knots_mm.reshape(num_planes, -1)
    profiles = profiles.reshape(*scan.shape[:-1], *knots_mm.shape[2:])
    return (along_front[..., None] * profiles).sum(-2)  # type: ignore[no-any-return]


def interpolation_matrix(places: Points, num_nodes: int) -> Points:
    """Return the [positions, nodes] weights of linear interpolation between nodes that span 0..1."""
    position = np.asarray(places) * (num_nodes - 1)
    return np.clip(1 - np.abs(position[:, None] - np.arange(num_nodes)), 0, None)  # type: ignore[no-any-return]


def locate(grid: Points, targets: Points) -> Points:
    """Find where in the image and the slab points of the scan lie: Newton inversion of the interpolated grid.

    Args:
        grid: what `warp_grid` returned.
        targets: [num, 3] millimetres in the scan.

    Returns:
        [num, 3] row, col, depth in 0..1 of the image and the slab; outside of it the outermost cells are continued.
    """
    last = np.array(grid.shape[:3]) - 1
    flat = grid.reshape(-1, 3)
    nearest = np.argmin((flat**2).sum(1) - 2 * targets @ flat.T, axis=1)
    position = np.stack(np.unravel_index(nearest, grid.shape[:3]), axis=1).astype(np.float64)
    for _ in range(NUM_NEWTON_STEPS):
        value, jacobian = _trilinear(grid, position, last)
        step = np.linalg.solve(jacobian, (targets - value)[..., None])[..., 0]
        # Less than a cell at once: a step across many cells would use a slope that holds in one.
        position += np.clip(step, -0.75, 0.75)
        if np.abs(step).max() < 1e-9:
            break
    return position / last  # type: ignore[no-any-return]


def _trilinear(grid: Points, position: Points, last: npt.NDArray[np.int_]) -> tuple[Points, Points]:
    """Return value [num, 3] and Jacobian [num, 3, 3] (scan axis, raster axis) of the interpolated grid."""
    cell = np.clip(np.floor(position).astype(int), 0, last - 1)
    share = position - cell
    value = np.zeros_like(position)
    jacobian = np.zeros((len(position), 3, 3))
    for corner in np.ndindex(2, 2, 2):
        node = grid[tuple((cell + corner).T)]
        factors = np.where(corner, share, 1 - share)
        value += factors.prod(1, keepdims=True) * node
        for axis in range(3):
            others = np.delete(factors, axis, axis=1).prod(1)
            jacobian[:, :, axis] += ((1 if corner[axis] else -1) * others)[:, None] * node
    return value, jacobian
