"""Time to build a batch's dense targets: ours on the device against per-sample construction on the host.

Compared, for the same crop pairs of the paper's grid (decomposition 196×784 and composition 196×49 for every sample):

- ours: `ace.geometry.targets`, four small matrices per pair and their Kronecker products, for the whole batch on the
  device, as training uses them: the entries that are not 0, 25 and 9 a row, with their columns;
- `dense`: ours written out as whole matrices, which training never does;
- `looped`: a plain double loop over a sample's tokens that lays one numpy Gaussian window for each, as
  `reference/straightforward.py` uses it; then stacked and copied to the device;
- `vectorised`: one broadcast numpy expression for all tokens of a sample, which a careful author would write; the same
  stack and copy.

All are first checked to hold equal values. Medians of rounds in turn. Last line: one JSON object with `ratio` (looped
over ours), `ratio_to_vectorised`, and `ratio_dense` (looped over ours written out).

    python benchmarks/targets.py [--batch 32] [--num-rounds 9]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from reference import targets as reference
from torch import Tensor

from ace.geometry.targets import Matches, composition_target, decomposition_target
from ace.models.device import default_device
from shards.core.grid import CropPair, GridSpec, Scale, draw_crop_pair

Targets = tuple[Matches, Matches] | tuple[Tensor, Tensor]
OnHost = Callable[[tuple[int, int], tuple[int, int], int, int, int], np.ndarray]


def on_device(coarse: Tensor, fine: Tensor, spec: GridSpec) -> tuple[Matches, Matches]:
    k, l = spec.scales[0].k, spec.scales[0].l
    return (
        decomposition_target(coarse, fine, t=spec.t, k=k, l=l),
        composition_target(coarse, fine, t=spec.t, k=k, l=l),
    )


def written_out(coarse: Tensor, fine: Tensor, spec: GridSpec) -> tuple[Tensor, Tensor]:
    decomposition, composition = on_device(coarse, fine, spec)
    return decomposition.dense(), composition.dense()


def on_host(
    pairs: list[CropPair], spec: GridSpec, device: torch.device, decomposition: OnHost, composition: OnHost
) -> tuple[Tensor, Tensor]:
    built = [
        [build(pair.coarse, pair.fine, spec.t, pair.k, pair.l) for pair in pairs]
        for build in (decomposition, composition)
    ]
    first, second = (torch.from_numpy(np.stack(matrices)).to(device) for matrices in built)
    return first, second


def timed(function: Callable[[], Targets], device: torch.device) -> float:
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--num-rounds", type=int, default=9, help="after one to warm up")
    arguments = parser.parse_args()
    spec = GridSpec(n=32, cell_px=32, t=14, scales=(Scale(2, 2, 1.0),), min_overlap=0.5, min_jitter_area=0.85)
    device, rng = default_device(), np.random.default_rng(0)
    pairs = [draw_crop_pair(spec, spec.scales[0], rng) for _ in range(arguments.batch)]
    coarse, fine = (torch.tensor([getattr(pair, name) for pair in pairs], device=device) for name in ("coarse", "fine"))
    kinds: dict[str, Callable[[], Targets]] = {
        "ours": lambda: on_device(coarse, fine, spec),
        "dense": lambda: written_out(coarse, fine, spec),
        "looped": lambda: on_host(pairs, spec, device, reference.looped_decomposition, reference.looped_composition),
        "vectorised": lambda: on_host(
            pairs, spec, device, reference.vectorised_decomposition, reference.vectorised_composition
        ),
    }
    expected = written_out(coarse, fine, spec)
    for name in ("looped", "vectorised"):
        for ours, theirs in zip(expected, kinds[name](), strict=True):
            torch.testing.assert_close(theirs, ours, msg=lambda text, name=name: f"{name}: {text}")
    rounds = [{name: timed(build, device) for name, build in kinds.items()} for _ in range(arguments.num_rounds + 1)][
        1:
    ]
    medians = {name: statistics.median(seconds[name] for seconds in rounds) for name in kinds}
    result = {
        "batch": arguments.batch,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        **{f"{name}_ms": round(1000 * seconds, 3) for name, seconds in medians.items()},
        "ratio": round(medians["looped"] / medians["ours"], 1),
        "ratio_to_vectorised": round(medians["vectorised"] / medians["ours"], 1),
        "ratio_dense": round(medians["looped"] / medians["dense"], 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
