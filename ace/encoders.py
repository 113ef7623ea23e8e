"""Add an encoder to those that are compared: one command writes all that its stages need."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ace.config import CONFIGS, Config, complete, list_encoders
from ace.embed.opening import EncoderParams
from shards.core.config import read_params
from shards.core.errors import ConfigError
from shards.delivery.project import Project
from shards.delivery.yaml_lines import enter_item
from shards.runtime.atomic import write_text


def add_encoder(
    name: str,
    encoder: EncoderParams,
    project: Project,
    *,
    made_by: Mapping[str, Mapping[str, Any]],
    configs: Path = CONFIGS,
) -> list[str]:
    """Enter an encoder in the params file, and in dvc.yaml what the stages read of it; nothing else is trained again.

    A params file with a line `base: NAME` is a configuration, whose dvc.yaml is made from it (`config use`).

    Args:
        name: Of the encoder.
        encoder: Its item of `encoders`.
        project: The params file, and dvc.yaml beside it.
        made_by: Section → the item of this name that makes its model: of `variants` or `imports`; none for a model
            that is there already.
        configs: The folder of named configurations.

    Returns:
        What was done, a sentence each.

    Raises:
        ConfigError: the name is taken, the params are no valid ones with it, or the stages' deps are not written as
            lists of lines; then nothing is written.
    """
    params = project.params
    with project.editing():
        values = read_params(params)
        text = params.read_text(encoding="utf-8")
        entries = {**made_by, "encoders": encoder.model_dump(mode="json")}
        for section, item in entries.items():
            if name in (values.get(section) or {}):
                raise ConfigError(f"{params}: {section} has '{name}' already; choose another name, or change it there")
            text = enter_item(text, section, name, item)
        changed = YAML(typ="safe", pure=True).load(text)
        is_configuration = "base" in changed
        config = Config.from_params(complete(changed, configs) if is_configuration else changed, str(params))
        # dvc.yaml first: killed in between, or where it cannot be edited, the same command is done as if anew.
        listed = [] if is_configuration else list_encoders(config.encoders, project.dvc)
        write_text(params, text)
        return [*(f"{params}: {section} has {name} now" for section in entries), *listed]
