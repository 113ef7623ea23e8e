"""Put into words what config.json of a model says of the parts that were erased in its training."""

from ace.models.model_config import PretrainSection

FILLS = {
    "black": "black",
    "mean": "the crop's mean level",
    "grey": "a random level",
    "noise": "noise",
    "tissue": "another image's tissue",
}
"""Words for the fills of erased pixels, by the names of `pretrain.augment.erase.fills`."""


def erased_parts(pretrain: PretrainSection) -> str:
    """Say what was erased of how many crops and what filled it; an empty text if nothing was erased."""
    erase = pretrain.augment.erase
    if erase.probability == 0:
        return ""
    shape = "square" if erase.max_aspect == 1 else "rectangle"
    parts = f"a {shape}" if erase.max_rectangles == 1 else f"1 to {erase.max_rectangles} {shape}s"
    return f"{parts} in {100 * erase.probability:g} % of the crops, filled with {_fills(pretrain)}"


def _fills(pretrain: PretrainSection) -> str:
    """Return the fills that were drawn, with their shares where these differ."""
    fills = pretrain.augment.erase.fills
    weights = {name: fills[name] for name in FILLS if fills.get(name, 0) > 0}
    names = [FILLS[name] for name in weights]
    is_equal = len(set(weights.values())) == 1
    if not is_equal:
        shares = [weight / sum(weights.values()) for weight in weights.values()]
        names = [f"{name} ({100 * share:.0f} %)" for name, share in zip(names, shares, strict=True)]
    *others, last = names
    listed = f"{', '.join(others)} or {last}" if others else last
    return f"{listed}, each equally often" if others and is_equal else listed
