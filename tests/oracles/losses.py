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
        for teacher, student in ((teacher_coarse[i], student_fine[i]), (teacher_fine[i], student_coarse[i])):
            total += 0.5 * _cross_entropy(teacher, student, center, student_temperature, teacher_temperature)
    return total, int(valid.sum())


def view_consistency(
    student: np.ndarray,
    teacher: np.ndarray,
    valid: np.ndarray,
    center: np.ndarray,
    student_temperature: float,
    teacher_temperature: float,
) -> float:
    """Sum over the valid samples of the mean cross-entropy of a teacher's view and another one of the student's."""
    total = 0.0
    for i in np.flatnonzero(valid):
        terms = []
        for a in range(len(teacher)):
            for b in range(len(student)):
                if a != b:
                    rows = teacher[a, i], student[b, i]
                    terms.append(_cross_entropy(*rows, center, student_temperature, teacher_temperature))
        total += sum(terms) / len(terms)
    return total


def removal(
    student: np.ndarray, teacher: np.ndarray, shown: np.ndarray, inserted: np.ndarray | None = None
) -> tuple[float, float]:
    """`Σ‖z − v·z̄ − (1−v)·z̄'‖²` and `Σ‖z̄‖²` over the tokens of the crops [crops, tokens, dim] with something erased."""
    error = energy = 0.0
    inserted = np.zeros_like(teacher) if inserted is None else inserted
    for number, shares in enumerate(shown.tolist()):
        if all(share == 1 for share in shares):
            continue
        crops = (values[number].tolist() for values in (student, teacher, inserted))
        for token, taught, new, share in zip(*crops, shares, strict=True):
            error += sum((x - share * y - (1 - share) * w) ** 2 for x, y, w in zip(token, taught, new, strict=True))
            energy += sum(y * y for y in taught)
    return error, energy


def removal_monitors(student: np.ndarray, teacher: np.ndarray, shown: np.ndarray) -> tuple[float, float]:
    """Mean length of erased tokens over that of visible ones; share of the squared change on tokens shown in full.

    Both of the crops with something erased; a token is visible if more than half of it is shown.
    """
    erased: list[float] = []
    visible: list[float] = []
    outside = change = 0.0
    for crop, whole, shares in zip(student.tolist(), teacher.tolist(), shown.tolist(), strict=True):
        if all(share == 1 for share in shares):
            continue
        for token, taught, share in zip(crop, whole, shares, strict=True):
            (visible if share > 0.5 else erased).append(math.sqrt(sum(x * x for x in token)))
            square = sum((x - y) ** 2 for x, y in zip(token, taught, strict=True))
            change += square
            outside += square if share == 1 else 0.0
    return (sum(erased) / len(erased)) / (sum(visible) / len(visible)), outside / change


def pooled(tokens: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Mean of one crop's tokens [tokens, dim] that are inside; 0 if none is."""
    total, count = np.zeros(tokens.shape[1]), 0
    for token, is_inside in zip(tokens, inside, strict=True):
        if is_inside:
            total, count = total + token, count + 1
    return total / max(count, 1)


def normalized(tokens: np.ndarray) -> np.ndarray:
    """Every token divided by its length."""
    return np.array([[token / math.sqrt(sum(x * x for x in token.tolist())) for token in crop] for crop in tokens])


def moved_center(center: np.ndarray, batches: list[tuple[np.ndarray, np.ndarray]], momentum: float) -> np.ndarray:
    """The centre after one step: batches are micro-batches of teacher logits [views, batch, out] and their validity."""
    rows = [view[i] for logits, valid in batches for view in logits for i in range(len(valid)) if valid[i]]
    return momentum * center + (1 - momentum) * sum(rows) / len(rows) if rows else center


def numerical_gradient(function, values: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences of a scalar function of one array."""
    gradient = np.zeros_like(values)
    for index in np.ndindex(values.shape):
        upper, lower = values.copy(), values.copy()
        upper[index] += step
        lower[index] -= step
        gradient[index] = (function(upper) - function(lower)) / (2 * step)
    return gradient


def _cross_entropy(
    teacher: np.ndarray,
    student: np.ndarray,
    center: np.ndarray,
    student_temperature: float,
    teacher_temperature: float,
) -> float:
    p = _softmax((teacher - center) / teacher_temperature)
    q = _softmax(student / student_temperature)
    return -float(np.sum(p * np.log(q)))


def _softmax(x: np.ndarray) -> np.ndarray:
    exponentials = np.exp(x - x.max())
    return exponentials / exponentials.sum()
