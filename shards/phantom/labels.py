"""Name the labels of the segmented CT (TotalSegmentator v2 numbering) that make up each structure."""

LUNG_LEFT = (10, 11)
LUNG_RIGHT = (12, 13, 14)
LUNG = LUNG_LEFT + LUNG_RIGHT
HEART = (51, 61)
AORTA = (52,)
TRACHEA = (16,)
VESSELS = (52, 53, 54, 55, 56, 57, 58, 59, 60, 62, 63, 64)
VERTEBRAE = {
    "L1": 31, "T12": 32, "T11": 33, "T10": 34, "T9": 35, "T8": 36, "T7": 37, "T6": 38, "T5": 39,
    "T4": 40, "T3": 41, "T2": 42, "T1": 43, "C7": 44,
}  # fmt: skip
SPINAL_CORD = (79,)
SPINE = tuple(range(26, 51))
RIBS_LEFT = tuple(range(92, 104))
RIBS_RIGHT = tuple(range(104, 116))
CLAVICLE_LEFT, CLAVICLE_RIGHT = (73,), (74,)
SCAPULA_LEFT, SCAPULA_RIGHT = (71,), (72,)
HUMERUS_LEFT, HUMERUS_RIGHT = (69,), (70,)
STERNUM = (116,)
COSTAL_CARTILAGES = (118,)
SPLEEN, LIVER, STOMACH, COLON = (1,), (5,), (6,), (20,)
BELOW_DIAPHRAGM = LIVER + STOMACH + SPLEEN + COLON
BONE = (
    SPINE + RIBS_LEFT + RIBS_RIGHT + CLAVICLE_LEFT + CLAVICLE_RIGHT + SCAPULA_LEFT + SCAPULA_RIGHT
    + HUMERUS_LEFT + HUMERUS_RIGHT + STERNUM + COSTAL_CARTILAGES
)  # fmt: skip

# Masks that are the plain projection of labels; the lung fields are derived from them (projection.py).
STRUCTURES: dict[str, tuple[int, ...]] = {
    "lung_left": LUNG_LEFT,
    "lung_right": LUNG_RIGHT,
    "heart": HEART,
    "aorta": AORTA,
    "trachea": TRACHEA,
    "clavicle_left": CLAVICLE_LEFT,
    "clavicle_right": CLAVICLE_RIGHT,
    "scapula_left": SCAPULA_LEFT,
    "scapula_right": SCAPULA_RIGHT,
    "humerus_left": HUMERUS_LEFT,
    "humerus_right": HUMERUS_RIGHT,
    "ribs_left": RIBS_LEFT,
    "ribs_right": RIBS_RIGHT,
    "spine": SPINE,
    "sternum": STERNUM,
    "below_diaphragm": BELOW_DIAPHRAGM,
}
