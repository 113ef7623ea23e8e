"""How soon the explorer's pictures follow the pointer, in a headless Chromium that is moved by real input.

The page is one that `python -m ace explore` made; `dvc repro explore` makes that of a project. For each encoder and
each kind of patch the pointer goes to random places of the picture. Of every move: `render_ms`, the search over all
patients and the drawing of all maps, and `delay_ms`, from the move to the finished picture, which includes waiting for
the next frame of the screen (16.7 ms at 60 a second) and what the browser does. Last line: one JSON object.

    python benchmarks/explorer.py [reports/explorer.html] [--moves 100]
"""

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.support.chromium import Page, chromium  # noqa: E402

WATCH = """
globalThis.taken = [];
let moved = null;
addEventListener("pointermove", event => { moved = event.timeStamp; }, true);
const own = render;
globalThis.render = () => {
  const from = performance.now();
  own();
  const rendered = performance.now() - from, channel = new MessageChannel(), at = moved;
  // A message comes after the frame in which the maps were drawn.
  channel.port1.onmessage = () => { if (at !== null) taken.push([rendered, performance.now() - at]); };
  channel.port2.postMessage(null);
};
"""
PATCHES = ("token", "composed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", nargs="?", type=Path, default=ROOT / "reports/explorer.html")
    parser.add_argument("--moves", type=int, default=100, help="of the pointer, for each encoder and kind of patch")
    arguments = parser.parse_args()
    missing = None
    if not arguments.page.is_file():
        missing = f"{arguments.page}: not found; `dvc repro explore` makes it"
    elif not (shutil.which("chromium") or shutil.which("chromium-browser")):
        missing = "Chromium is missing; install Debian's package chromium"
    if missing:
        print(missing, file=sys.stderr)
        print(json.dumps({"not_measured": missing}))
        return
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder)) as page:
        print(json.dumps(measure(page, arguments.page.resolve(), arguments.moves)))


def measure(page: Page, path: Path, num_moves: int) -> dict[str, Any]:
    page.open(path)
    encoders = page.script("encoders.map(encoder => encoder.name)")
    num_patients = page.script("patients.length")
    page.script(f"(() => {{{WATCH}}})()")
    places = random.Random(0)
    result: dict[str, Any] = {"num_patients": num_patients, "page_mb": round(path.stat().st_size / 1e6, 1)}
    every: list[tuple[float, float]] = []
    for number, encoder in enumerate(encoders):
        for patch in PATCHES:
            page.click(f"#encoders input[value='{number}'] + span")
            page.click(f"#patches input[value='{patch}'] + span")
            page.move("#query", (0.5, 0.5))  # what an encoder needs once is computed here
            page.script("taken.length = 0")
            for _ in range(num_moves):
                page.move("#query", (places.uniform(0.02, 0.98), places.uniform(0.02, 0.98)))
            taken = page.script("taken")
            every += taken
            result[f"{encoder}, {patch}"] = summary(taken)
    if page.problems:
        raise SystemExit(f"the page had problems: {page.problems}")
    return result | {"all": summary(every)}


def summary(taken: Sequence[Sequence[float]]) -> dict[str, float | int]:
    rendered, delayed = zip(*taken, strict=True)
    return {
        "num_moves": len(taken),
        "render_ms": round(statistics.median(rendered), 2),
        "render_ms_95th": round(statistics.quantiles(rendered, n=20)[-1], 2),
        "delay_ms": round(statistics.median(delayed), 2),
        "delay_ms_95th": round(statistics.quantiles(delayed, n=20)[-1], 2),
    }


if __name__ == "__main__":
    main()
