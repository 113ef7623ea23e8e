"""Schedules as pure functions of the step (ACE sec. 4.1; DINO's cosine schedules)."""

import math


def cosine(start: float, end: float, step: int, num_steps: int) -> float:
    """Half a cosine from `start` at step 0 to `end` at the last step, `num_steps - 1`."""
    progress = min(step / max(num_steps - 1, 1), 1.0)
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))


def warmup_cosine(peak: float, end: float, step: int, num_steps: int, num_warmup_steps: int) -> float:
    """Linear from 0 to `peak` over the warm-up, then a cosine to `end` at the last step."""
    if step < num_warmup_steps:
        return peak * (step + 1) / num_warmup_steps
    return cosine(peak, end, step - num_warmup_steps, num_steps - num_warmup_steps)


def linear_warmup(start: float, end: float, step: int, num_warmup_steps: int) -> float:
    """Linear from `start` to `end` over the warm-up, constant after it."""
    if step >= num_warmup_steps:
        return end
    return start + (end - start) * step / num_warmup_steps
