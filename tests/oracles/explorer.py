"""The search of explorer.html once more, slowly, from nothing but the numbers that stand in the page."""

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Match:
    row: int
    col: int
    score: float
    margin: float


class PageNumbers:
    """What a page holds: its data, and for each encoder the tokens as numbers [canvases, locations, locations, K]."""

    def __init__(self, page: Path) -> None:
        text = page.read_text(encoding="utf-8")
        found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
        assert found
        self.data: dict[str, Any] = json.loads(found[1])
        size = len(self.data["positions"])
        codes = re.findall(r'<script type="application/octet-stream" class="tokens">(.*?)</script>', text, re.DOTALL)
        self.codes = [
            np.frombuffer(base64.b64decode(own), np.int8).reshape(-1, size, size, len(encoder["scales"]))
            for own, encoder in zip(codes, self.data["encoders"], strict=True)
        ]

    @property
    def num_patients(self) -> int:
        return len(self.data["patients"])

    def sums(self, encoder: int, side: int) -> np.ndarray:
        """Sums of the codes of side × side cells, by the location of the first."""
        codes, step = self.codes[encoder].astype(int), self.data["per_cell"]
        size = codes.shape[1] - (side - 1) * step
        parts = [(row * step, col * step) for row in range(side) for col in range(side)]
        return sum(codes[:, row : row + size, col : col + size] for row, col in parts)

    def match(self, encoder: int, side: int, query: tuple[int, int, int], patient: int) -> Match:
        """The arg-max over a patient's places of the cosine with a (canvas, row, col), the first of equal ones."""
        sums, squares = self.sums(encoder, side), np.square(self.data["encoders"][encoder]["scales"])
        wanted, size = sums[query], sums.shape[1]
        dots, lengths = np.zeros((2, size, size))
        for k, square in enumerate(squares):  # one after another, as the page adds them
            dots += square * wanted[k] * sums[patient, ..., k]
            lengths += square * sums[patient, ..., k] * sums[patient, ..., k]
        own = 0.0
        for k, square in enumerate(squares):
            own += square * wanted[k] * wanted[k]
        products = np.sqrt(own) * np.sqrt(lengths)
        cosines = np.divide(dots, products, out=np.zeros_like(dots), where=products > 0)
        row, col = divmod(int(cosines.argmax()), size)
        near = self.data["per_cell"]
        outside = cosines.copy()
        outside[max(row - near, 0) : row + near + 1, max(col - near, 0) : col + near + 1] = -np.inf
        return Match(row, col, float(cosines[row, col]), float(cosines[row, col] - outside.max()))
