"""The losses in float64, one sample and one entry at a time, straight from their formulas."""

import math

import numpy as np


def balanced_bce(logits: np.ndarray, target: np.ndarray, known: np.ndarray, alpha: float) -> float:
    """Mean of `(α·y + (1−α)(1−y)) · BCE(σ(x), y)`, in which unknown entries are 0."""
    terms = []
    for x, y, is_known in zip(logits.ravel().tolist(), target.ravel().tolist(), known.ravel().tolist(), strict=True):
        if not is_known:
            terms.append(0.0)
            continue
        p = 1 / (1 + math.exp(-x))
        bce = -(y * math.log(p) + (1 - y) * math.log(1 - p))
        terms.append((alpha * y + (1 - alpha) * (1 - y)) * bce)
    return sum(terms) / len(terms)


def matching_loss(
    teacher: np.ndarray,
    student: np.ndarray,
    target: np.ndarray,
    known: np.ndarray,
    scale: float,
    bias: float,
    alpha: float,
) -> float:
    """Balanced BCE over the known pairs of a teacher and a student token."""
    logits = np.array(
        [
            [[scale * float(np.dot(row, col)) + bias for col in columns] for row in rows]
            for rows, columns in zip(teacher, student, strict=True)
        ]
    )
    return balanced_bce(logits, target, known, alpha)


def global_consistency(
    student_coarse: np.ndarray,
    student_fine: np.ndarray,
    teacher_coarse: np.ndarray,
    teacher_fine: np.ndarray,
    valid: np.ndarray,
    center: np.ndarray,
    student_temperature: float,
    teacher_temperature: float,
) -> tuple[float, int]:
    """Sum over the valid samples of the symmetric cross-entropy, and their number."""
    total = 0.0
    for i in np.flatnonzero(valid):
        pairs = [(teacher_coarse[i], student_fine[i]), (teacher_fine[i], student_coarse[i])]
        for teacher, student in pairs:
            p = _softmax((teacher - center) / teacher_temperature)
            q = _softmax(student / student_temperature)
            total -= 0.5 * float(np.sum(p * np.log(q)))
    return total, int(valid.sum())


def numerical_gradient(function, values: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences of a scalar function of one array."""
    gradient = np.zeros_like(values)
    for index in np.ndindex(values.shape):
        upper, lower = values.copy(), values.copy()
        upper[index] += step
        lower[index] -= step
        gradient[index] = (function(upper) - function(lower)) / (2 * step)
    return gradient


def _softmax(x: np.ndarray) -> np.ndarray:
    exponentials = np.exp(x - x.max())
    return exponentials / exponentials.sum()
