"""Give a registered batch its part in training, or take it away, as texts of params.yaml and dvc.yaml."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from shards.core.errors import ConfigError
from shards.core.normalisation import as_written
from shards.core.params import BatchParams
from shards.delivery.yaml_lines import SHARDS, add_deps, add_item, drop_deps, keep_items, set_dep
from shards.format.exclusion import exclusion_dep


class Texts(NamedTuple):
    """The texts of a project's two files.

    Attributes:
        params: Text of params.yaml.
        dvc: Text of dvc.yaml.
    """

    params: str
    dvc: str


def mix_item(
    name: str,
    batch: BatchParams,
    weight: float,
    values: Mapping[str, Any],
    batches: Mapping[str, BatchParams],
    *,
    share: bool = True,
) -> tuple[dict[str, Any], str | None]:
    """Make a batch's item of `mix`, and name the batch whose mean and std it shares, if it shares any.

    Args:
        name: Name of the batch.
        batch: Content of batches/NAME.yaml.
        weight: Share in training, above 0.
        values: Content of params.yaml.
        batches: Files of the project's batches.
        share: Take the mean and std of an earlier batch of the mix with the same source, site and channels.
    """
    mixes = values.get("mix") or {}
    alike = [other for other, found in batches.items() if other in mixes and other != name and _is_alike(found, batch)]
    if share and alike:
        levels = {key: mixes[alike[0]][key] for key in ("mean", "std")}
        return {"weight": weight, **levels}, alike[0]
    own = batch.measured.normalisation(1 if takes_grey(values) else batch.source.channels)
    return {"weight": weight, "mean": as_written(own.mean), "std": as_written(own.std)}, None


def takes_grey(values: Mapping[str, Any]) -> bool:
    """Tell whether the project's network has one channel, so that it sees coloured images in grey."""
    backbone = (values.get("pretrain") or {}).get("backbone") or {}
    return bool(backbone.get("in_channels") == 1)


def with_training(texts: Texts, name: str, item: Mapping[str, Any]) -> Texts:
    """Add a registered batch to `mix`, and to what the stages that read every batch depend on.

    Raises:
        ConfigError: a file is not written as expected.
    """
    return Texts(add_item(texts.params, "mix", name, item), add_deps(texts.dvc, name))


def without_batch(texts: Texts, name: str, values: Mapping[str, Any]) -> Texts:
    """Take a batch out of `batches`, `mix` and the deps of the stages.

    Args:
        texts: The two files.
        name: Name of the batch.
        values: Content of params.yaml.

    Raises:
        ConfigError: it is the only batch that is trained on, or is measured on, or a file is not written as expected.
    """
    if name == (values.get("evaluate") or {}).get("batch") or name in (values.get("finetune") or {}).values():
        raise ConfigError(
            f"batch {name} is measured on, by evaluate.batch or a task of `finetune` in params.yaml; first name "
            "another one there"
        )
    mixed = [other for other in values["mix"] if other != name]
    if not mixed:
        raise ConfigError(
            f"batch {name} is the only one that is trained on; first give another one a weight above 0 (mix)"
        )
    params = keep_items(texts.params, "batches", [other for other in values["batches"] if other != name])
    params = keep_items(params, "mix", mixed)
    dvc = drop_deps(texts.dvc, {SHARDS + name, values["batches"][name]})
    return Texts(params, set_dep(dvc, exclusion_dep(name), name, wanted=False))


def _is_alike(one: BatchParams, other: BatchParams) -> bool:
    """Tell whether two batches have the same source, site and number of channels."""
    keys = ("kind", "site", "channels")
    return all(getattr(one.source, key, None) == getattr(other.source, key, None) for key in keys)
