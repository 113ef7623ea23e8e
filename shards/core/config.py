"""params.yaml read as YAML 1.2 into frozen, typed sections; every mistake is one readable message."""

import difflib
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from shards.core.errors import ConfigError

DEFAULT_PARAMS = Path("params.yaml")


class Section(BaseModel):
    """One section of params.yaml: frozen, no unknown keys, attribute docstrings become descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def from_params(cls, values: Any, where: str) -> Self:
        """Validate `values`; `where` (as `params.yaml: grid`) opens every message.

        Raises:
            ConfigError: with one line per mistake: where it is, what was found, what was expected.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [_describe(cls, dict(item), where) for item in error.errors()]
            raise ConfigError("\n".join(lines)) from None


def read_params(path: Path = DEFAULT_PARAMS) -> dict[str, Any]:
    """Read the whole of a params file as plain dictionaries.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such params file; run from the project's root or pass --params FILE")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: expected a mapping of sections, found {type(values).__name__}")
    return deepcopy(dict(values))


@lru_cache(maxsize=256)
def parse_yaml(text: str) -> Any:
    """Parse a text into plain values, which nobody changes; one command looks into the same text many times.

    Raises:
        YAMLError: the text is not YAML.
    """
    return YAML(typ="safe", pure=True).load(text)


def laid_over(
    base: Mapping[str, Any],
    overlay: Mapping[str, Any],
    replaced: Callable[[Mapping[str, Any], Mapping[str, Any]], Collection[str]] = lambda base, overlay: (),
) -> dict[str, Any]:
    """Lay an overlay's values over those of `base`, mapping by mapping; an empty mapping empties the one in `base`.

    Args:
        base: The values below.
        overlay: The values that win.
        replaced: Names the keys of two such mappings whose value in the overlay takes the place of the one in `base`.
    """
    kept = replaced(base, overlay)
    nested = {
        key: laid_over(base[key], value, replaced)
        if isinstance(value, Mapping) and value and isinstance(base.get(key), Mapping) and key not in kept
        else value
        for key, value in overlay.items()
    }
    return {**base, **nested}


def _describe(section: type[BaseModel], error: dict[str, Any], where: str) -> str:
    path = ".".join(str(part) for part in error["loc"])
    found_at = f"{where}{'.' if ': ' in where else ': '}{path}" if path else where
    match error["type"]:
        case "extra_forbidden":
            key, known = str(error["loc"][-1]), _keys_beside(section, error["loc"])
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
            return f"{found_at}: unknown key; {hint}"
        case "missing":
            return f"{found_at}: missing; every number of a run stands in params.yaml"
        case "value_error":
            return f"{found_at}: {error['msg'].removeprefix('Value error, ')}"
        case _:
            return f"{found_at}: {error['msg']}; found {error['input']!r}"


def _keys_beside(section: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the keys allowed where the unknown one stood."""
    models = [section]
    for part in location[:-1]:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        tagged = [model for model in models if part in get_args(_kind(model))]
        models = [found for field in fields for found in _sections(field.annotation)] or tagged or models
    return sorted({key for model in models for key in model.model_fields})


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections that a type is made of, as the members of a union or the values of a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _sections(part)]


def _kind(model: type[BaseModel]) -> Any:
    return model.model_fields["kind"].annotation if "kind" in model.model_fields else None
