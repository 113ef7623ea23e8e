"""Select the images of a delivery that a batch takes: by view, body part, label, age and sex (`register --select`).

The rules are applied once, at `register`, where ages and sexes are known as the source says them; the manifest has the
images that were taken, and batches/NAME.yaml the rules and how many images each left out.
"""

import difflib
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shards.core.errors import ConfigError, SourceError
from shards.core.modality import modality_of
from shards.core.params import AGES, SelectedParams, SelectParams
from shards.core.records import Record

OPTION = "--select"
ANY, UNKNOWN = "any", "unknown"
VIEWS: Mapping[str, frozenset[str]] = {
    "frontal": frozenset({"PA", "AP", "FRONTAL", "AP_HORIZONTAL"}),
    "lateral": frozenset({"L", "LL", "RL", "LAT", "LATERAL", "XTABLE LATERAL"}),
}
"""Word → codes of views. Decubitus, oblique and lordotic views are neither, and are named by their codes."""
_EXAMPLES = "view=frontal, body_part=chest, label=Edema,Mass, age=18.., sex=F, unknown=drop"
_PARTS = {"chest": "CHEST", "fundus": "EYE"}
_SEXES = ("F", "M", "O")
_MAX_NAMED = 12


@dataclass(frozen=True)
class Selection:
    """The result of applying rules to a delivery.

    Attributes:
        left_out: Path of every image that does not fit → why.
        counts: Number of images that each rule left out or kept without knowing.
        names: Rule → what the images are that it left out, with their numbers.
    """

    left_out: Mapping[str, str]
    counts: SelectedParams
    names: Mapping[str, Counter[str]]


def parse_select(items: Sequence[str]) -> dict[str, Any]:
    """Read the values of `--select`: rule → its value as batches/NAME.yaml has it, None for KEY=any.

    Args:
        items: KEY=VALUE or KEY=VALUE,VALUE each.

    Raises:
        ConfigError: one is of another form, has an unknown or a repeated key, or a value that its key cannot have.
    """
    rules: dict[str, Any] = {}
    known = list(SelectParams.model_fields)
    for item in items:
        key, separator, text = item.partition("=")
        values = tuple(dict.fromkeys(value.strip() for value in text.split(",") if value.strip()))
        if not separator or not values:
            raise ConfigError(f"{OPTION} {item}: expected KEY=VALUE, as {_EXAMPLES}")
        key = key.strip().replace("-", "_")
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise ConfigError(f"{OPTION} {item}: no key '{key}'; {hint}there are {', '.join(known)}")
        if key in rules:
            raise ConfigError(f"{OPTION} {item}: {key} is given twice; give all its values at once: {key}=ONE,OTHER")
        rules[key] = None if values == (ANY,) else _parsed(key, values, item)
    if set(rules) == {"unknown"}:
        raise ConfigError(f"{OPTION} unknown=drop: expected a rule beside it, as {OPTION} view=frontal")
    return rules


def _parsed(key: str, values: tuple[str, ...], item: str) -> Any:
    """Return the values of one rule as batches/NAME.yaml has them."""
    if ANY in values:
        raise ConfigError(f"{OPTION} {item}: '{ANY}' stands alone; it takes all images")
    if key == "age":
        if len(values) > 1 or not re.fullmatch(AGES, values[0]):
            raise ConfigError(f"{OPTION} {item}: expected years as FROM..TO, either may be missing: 18.. or 18..65")
        return values[0]
    if key == "unknown":
        if values != ("drop",):
            raise ConfigError(f"{OPTION} {item}: expected drop, which leaves out images whose value is unknown")
        return "drop"
    if key == "sex":
        values = tuple(value.upper() for value in values)
        if not set(values) <= set(_SEXES):
            raise ConfigError(f"{OPTION} {item}: expected {', '.join(_SEXES)}")
    return values


def select_of(given: Mapping[str, Any], kind: str, records: Sequence[Record]) -> SelectParams:
    """Return the rules of a new batch: those given, and else the frontal views alone where views are known.

    Cells of a frontal and of a lateral image at the same place show other anatomy, and the method rests on places.
    Views are known of public chest radiographs, and of a user's own images of one part of the body where some are known
    to be frontal. Of several parts of the body only the user knows which are meant, so all are taken.

    Args:
        given: Rules that somebody gave, as `parse_select` reads them.
        kind: Name of the source.
        records: Records of the whole delivery.

    Raises:
        ConfigError: the last year is before the first.
    """
    found = _mixture(records, kind)
    is_frontal = modality_of(kind) == "chest" or (found is not None and found[0] == "view")
    rules = {"view": ("frontal",)} if is_frontal else {}
    return SelectParams.from_params({**rules, **given}, OPTION)


def select_images(
    records: Sequence[Record], select: SelectParams, given: Collection[str], kind: str, where: str
) -> Selection:
    """Tell which images fit all rules. An image is counted by the first rule, in their order, that leaves it out.

    Args:
        records: Records of the whole delivery.
        select: The rules.
        given: Rules that somebody gave, which must have something to do.
        kind: Name of the source.
        where: The folder, which opens messages.

    Raises:
        SourceError: a rule names what no image is, or what it asks for is unknown of all images, or none is left.
    """
    rules = _written(select)
    for rule in rules:
        if rule in given:
            _check_rule(rule, rules[rule], records, kind, where)
    left_out: dict[str, str] = {}
    names: dict[str, Counter[str]] = {}
    num_unknown: Counter[str] = Counter()
    for record in records:
        found = {rule: _names_of(rule, record, kind) for rule in rules}
        wrong = next((rule for rule in rules if not _fits(rule, found[rule], select)), None)
        if wrong is None:
            num_unknown.update(rule for rule in rules if found[rule] is None)
        else:
            left_out[record.image.path] = f"not {wrong}={rules[wrong]} ({OPTION})"
            names.setdefault(wrong, Counter())[_shown(wrong, found[wrong])] += 1
    counts = SelectedParams(
        num_listed=len(records),
        left_out={rule: names[rule].total() for rule in rules if rule in names},
        unknown={rule: num_unknown[rule] for rule in rules if num_unknown[rule]},
    )
    selection = Selection(left_out, counts, names)
    if len(left_out) == len(records):
        raise SourceError(
            f"{where}: none of its {len(records):,} images is selected:{describe(selection, select)}; expected some: "
            f"give other rules, or take all: {' '.join(f'{OPTION} {rule}={ANY}' for rule in rules)}"
        )
    return selection


def describe(selection: Selection, select: SelectParams) -> str:
    """Say what each rule left out, and what it kept because nothing is known of it; a line a rule."""
    rules, counts = _written(select), selection.counts
    lines = []
    for rule, number in counts.left_out.items():
        lines.append(f"{number:6,} left out, not {rule}={rules[rule]}: {_listed(selection.names[rule])}")
    for rule, number in counts.unknown.items():
        lines.append(f"{number:6,} kept, {rule} unknown ({OPTION} unknown=drop leaves them out)")
    return "".join(f"\n{line}" for line in lines)


def describe_mixture(records: Sequence[Record], kind: str) -> str | None:
    """Say which rule would tell apart what a delivery mixes: several body parts, or frontal views and others."""
    found = _mixture(records, kind)
    if found is None:
        return None
    rule, wanted, counts = found
    return (
        f"images of several kinds ({rule}: {_listed(counts)}), and all are taken; training compares places on the "
        f"canvas, so take one kind: {OPTION} {rule}={wanted}"
    )


def _mixture(records: Sequence[Record], kind: str) -> tuple[str, str, Counter[str]] | None:
    """Find the rule that would tell apart what a delivery mixes, the value that most would want, and what there is."""
    parts = Counter(_shown("body_part", _names_of("body_part", record, kind)) for record in records)
    known = [name for name in parts if name != UNKNOWN]
    if len(known) > 1:
        return "body_part", max(known, key=lambda name: parts[name]).lower(), parts
    views = Counter(_shown("view", _names_of("view", record, kind)) for record in records)
    frontal = [name for name in views if name in VIEWS["frontal"]]
    return ("view", "frontal", views) if 0 < len(frontal) < len(views.keys() - {UNKNOWN}) else None


def _written(select: SelectParams) -> dict[str, str]:
    """Write each rule's value as a user writes it."""
    values = select.model_dump(mode="json", exclude_none=True, exclude={"unknown"})
    return {rule: value if isinstance(value, str) else ",".join(value) for rule, value in values.items()}


def _names_of(rule: str, record: Record, kind: str) -> tuple[str, ...] | None:
    """Name what an image is by one rule, the word of its kind of view behind its code; None where that is unknown."""
    family = modality_of(kind)
    part = record.body_part or (_PARTS[family] if family else None)
    match rule:
        case "view":
            if record.view is None:
                return None
            code = record.view.rpartition("-")[2] if kind == "dicom" else record.view
            # Of an eye the view is its side.
            words = [word for word, codes in VIEWS.items() if code.upper() in codes and part != "EYE"]
            return (code.upper(), *words)
        case "body_part":
            return None if part is None else (part,)
        case "label":
            return tuple(name for name, value in record.labels.items() if value == 1)
        case "age":
            return None if record.age_years is None else (str(record.age_years),)
        case _:
            return None if record.sex is None else (record.sex,)


def _fits(rule: str, names: tuple[str, ...] | None, select: SelectParams) -> bool:
    if names is None:
        return select.unknown != "drop"
    if rule == "age":
        low, high = select.ages
        return low <= math.floor(float(names[0])) <= high
    wanted = {value.casefold() for value in getattr(select, rule)}
    return any(name.casefold() in wanted for name in names)


def _shown(rule: str, names: tuple[str, ...] | None) -> str:
    """Name an image by one rule for messages; an age is nobody's business."""
    if names is None:
        return UNKNOWN
    if rule == "label":
        return "without the label"
    return "another age" if rule == "age" else names[0]


def _hint(rule: str, kind: str) -> str:
    if kind == "folder" and rule != "body_part":
        column = {"age": "age_years", "label": "of the label's name"}.get(rule, rule)
        return f"say it in the CSV (--labels), column {column}"
    return f"leave the rule out: sources of this kind do not tell the {rule} of these images"


def _check_rule(rule: str, value: str, records: Sequence[Record], kind: str, where: str) -> None:
    """Hold a rule that somebody gave against what there is.

    Raises:
        SourceError: it names what no image is, or what it asks for is unknown of all images.
    """
    found = [_names_of(rule, record, kind) or () for record in records]
    if rule == "label":
        there = Counter(dict.fromkeys((name for record in records for name in record.labels), 0))
        there.update(name for names in found for name in names)
    else:
        there = Counter(name for names in found for name in names[:1])
    if not there:
        raise SourceError(
            f"{where}: {OPTION} {rule}={value}: the {rule} is unknown of all its {len(records):,} images, so nothing "
            f"can be selected by it; {_hint(rule, kind)}"
        )
    if rule == "age":
        return
    words = {name.casefold() for name in there} | (set(VIEWS) if rule == "view" else set())
    for name in value.split(","):
        if name.casefold() not in words:
            close = difflib.get_close_matches(name.casefold(), words, n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise SourceError(
                f"{where}: {OPTION} {rule}={value}: no image has '{name}'; {hint}there are {_listed(there)}"
            )


def _listed(counts: Counter[str]) -> str:
    """List the names with their numbers, the most frequent first."""
    named = ", ".join(f"{name} {number:,}" for name, number in counts.most_common(_MAX_NAMED))
    return f"{named} and {len(counts) - _MAX_NAMED} more" if len(counts) > _MAX_NAMED else named
