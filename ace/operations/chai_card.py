"""Write the card of a version in the Applied Model Card form of the Coalition for Health AI (schema v0.2).

The form is XML; https://mc.chai.org has its schema. What the project knows is filled in: figures of the version's
commit with their intervals, what it was trained with, what the gate said of subgroups. What only its owner knows comes
from the section `operations.card`, and what nobody has stated is said to be not stated.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from ace.embed.preprocessing import placement_text
from ace.journal.card import ORIGINS, start_text
from ace.models.folder import CONFIG, WEIGHTS
from ace.models.model_config import TrainedConfig
from ace.models.notice import NOTICE
from ace.operations import history
from ace.operations.clone import git
from ace.operations.events import Event
from ace.operations.history import Version
from ace.operations.lineage import is_made_from, trace
from ace.operations.model_files import read_config_of, read_lock
from ace.operations.params import CardParams
from ace.operations.registry import Registry
from ace.operations.retraining_state import retraining_of
from ace.operations.withdrawal_state import retiring, withdrawals
from ace.operations.work_tree import PARAMS
from shards.core.config import parse_yaml
from shards.core.errors import ConfigError

NAMESPACE = "https://mc.chai.org/v0.2/schema.xsd"
NOT_STATED = "Not stated by the developer."
PAPER = """\
@inproceedings{ace2025,
  title = {ACE: Anatomically Consistent Embeddings in Composition and Decomposition},
  booktitle = {IEEE/CVF Winter Conference on Applications of Computer Vision (WACV)},
  year = {2025},
  eprint = {2501.10131}
}"""
_FIGURES, _GATE = "metrics/properties.json", "metrics/gate.json"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_Content = str | list["_Node"]
_Node = tuple[str, _Content]


def chai_card(registry: Registry, version: Version, stated: CardParams) -> bytes:
    """Write the card of a version, as XML in UTF-8.

    Args:
        registry: The registry.
        version: The version.
        stated: What its owner says of it.

    Raises:
        OperationsError: the commit or the model's bytes are not there.
        ConfigError: the model's config.json is not that of a training.
    """
    config, events = _config(registry, version), registry.events()
    batches = trace(registry, version)["batches"]
    nodes: list[_Node] = [
        (
            "BasicInfo",
            [
                ("ModelName", stated.name),
                ("ModelDeveloper", _said(stated.developer)),
                ("DeveloperContact", _said(stated.contact)),
            ],
        ),
        (
            "ReleaseInfo",
            [
                ("ReleaseStage", f"{_said(stated.release_stage)}\n\n{status_text(events, version)}"),
                ("ReleaseDate", _released(events, version)),
                ("ReleaseVersion", f"{version.name}, commit {version.commit}"),
                ("GlobalAvailability", _said(stated.availability)),
            ],
        ),
        (
            "ModelSummary",
            [
                (
                    "Summary",
                    f"{ORIGINS[config.params.pretrain.objective]}\n\nAn encoder: it embeds images.",
                ),
                (
                    "Keywords",
                    [("Keyword", word) for word in ("medical imaging", "self-supervised learning")],
                ),
            ],
        ),
        (
            "UsesAndDirections",
            [
                ("IntendedUseAndWorkflow", _said(stated.intended_use)),
                ("PrimaryIntendedUsers", _said(stated.users)),
                ("HowToUse", f"Load the folder of the version with `ace.load` ({_input(config)})."),
                ("TargetedPatientPopulation", _said(stated.population)),
                ("CautionedOutOfScopeSettings", f"{NOTICE}\n\n{_said(stated.out_of_scope)}"),
            ],
        ),
        (
            "Warnings",
            [
                ("KnownRisksAndLimitations", "What the encoder learned is bounded by the images it was trained with."),
                ("KnownBiasesOrEthicalConsiderations", _said(stated.biases)),
                ("ClinicalRiskLevel", _said(stated.risk_level)),
            ],
        ),
        ("TrustIngredients", _trust(config, batches, stated)),
        ("KeyMetrics", _metrics(registry, version, retraining_of(events, version.event))),
        (
            "Resources",
            [
                (
                    "PeerReviewedPublications",
                    "Of the method that this software implements: ACE, WACV 2025, arXiv 2501.10131. The summary says "
                    "how this model was trained.",
                ),
                ("PatientConsentOrDisclosure", _consent(batches)),
            ],
        ),
        ("Bibliography", PAPER),
    ]
    root = _element(("AppliedModelCard", nodes))
    root.set("xmlns", NAMESPACE)
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)
    return text + b"\n"


def status_text(events: Sequence[Event], version: Version) -> str:
    """Say whether a version is the accepted one, and whether a patient whom it was trained with has withdrawn."""
    number, last = version.number, history.accepted(events)
    if last is not None and last.facts["version"] == number:
        status = "This is the accepted version."
    elif any(event.facts["version"] == number for event in history.acceptances(events)):
        status = f"Accepted earlier, and replaced since: the accepted version is v{last and last.facts['version']}."
    else:
        status = "Registered, and never accepted."
    if retiring(events, number) is not None:
        return f"{status} Retired: a patient whom it was trained with has withdrawn, and it may not be accepted again."
    affecting = [found for found in withdrawals(events).values() if number in found.versions]
    if not affecting:
        return status
    decided = sorted({found.action(number) or "not decided yet" for found in affecting})
    return f"{status} A patient whom it was trained with has withdrawn; what becomes of it: {', '.join(decided)}."


def _released(events: Sequence[Event], version: Version) -> str:
    first = next((event for event in history.acceptances(events) if event.facts["version"] == version.number), None)
    return "Not released" if first is None else f"{first.time:%Y-%m-%d}"


def _trust(config: TrainedConfig, batches: Mapping[str, Mapping[str, Any]], stated: CardParams) -> list[_Node]:
    seen = [f"{item.batch}: {item.num_images} training images of {item.patients} patients" for item in config.shards]
    if config.params.pretrain.start_from is not None:
        seen.append("Besides, the images of the model that it started from.")
    sources = sorted({batch["source"] for batch in batches.values()})
    return [
        (
            "AISystemFacts",
            [
                ("OutcomesAndOutputs", "An embedding of an image, and one token for each cell of a grid over it."),
                ("ModelType", _kind(config)),
                ("FoundationModels", f"Started from {start_text(config)}."),
                ("InputDataSource", f"Kinds of source (docs/register.md): {', '.join(sources) or 'not known'}"),
                ("OutputAndInputDataTypes", _input(config)),
                ("DevelopmentDataCharacterization", "\n".join(seen)),
                ("BiasMitigationApproaches", _said(stated.bias_mitigation)),
                ("OngoingMaintenance", _said(stated.maintenance)),
            ],
        ),
        (
            "TransparencyInformation",
            [("FundingSource", _said(stated.funding)), ("StakeholdersConsulted", _said(stated.stakeholders))],
        ),
    ]


def _metrics(registry: Registry, version: Version, began: Event | None) -> list[_Node]:
    """Tell the figures and the rules of the gate that the version's commit has, as far as they are of this model.

    Args:
        registry: The registry.
        version: The version.
        began: The event by which its retraining began; None for a model that a person trained.
    """
    figures = json.loads(_committed(registry, version, _FIGURES) or "{}")
    measured = figures.get("measured", {})
    if measured.get("model_sha256") != version.files[WEIGHTS["teacher"]]:
        figures, measured = {}, {}
    text = _committed(registry, version, _GATE)
    md5 = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
    is_own = is_made_from(read_lock(registry.root, version.commit), _GATE, md5, version.model)
    gate = json.loads(text) if text and is_own else {}
    whom = _measured_text(measured) if measured else NOT_STATED
    how = "Intervals by bootstrap over patients."
    if gate:
        is_earlier = began is not None and began.facts["gate_sha256"] == gate["gate_sha256"]
        when = "were written down before the training" if is_earlier else "may have been chosen after the training"
        how_of_gate = f"{how} The bounds of the gate {when}."
        said = f"The gate {'accepted' if gate['accepted'] else 'did not accept'} the model: {gate['sentence']}."
    else:
        how_of_gate, said = f"{how} No decision of the gate about this model is known.", ""
    rules = gate.get("rules", [])
    fair = [rule for rule in rules if rule.get("subgroup")]
    safe = [rule for rule in rules if rule["rule"] in ("not_leaked", "not_collapsed")]
    return [
        (
            "UsefulnessUsabilityEfficacy",
            _metric(
                "Properties of the embeddings",
                _estimates(registry, version, figures),
                whom,
                how,
                "docs/method.md defines each.",
            ),
        ),
        (
            "FairnessEquity",
            _metric(
                "Worse than the accepted model in no subgroup by more than a margin: the low end of the interval of "
                "the difference, above 0 is better",
                [_single(f"{rule['figure']}, {rule['subgroup']} ({rule['patients']} patients)", rule) for rule in fair],
                whom,
                how_of_gate,
                said,
            ),
        ),
        (
            "SafetyReliability",
            _metric(
                "No measured patient among those trained with, and no collapse of the training",
                [_single(f"{rule['rule']}: {rule['figure']}", rule) for rule in safe],
                whom,
                how_of_gate,
                said,
            ),
        ),
    ]


def _measured_text(measured: Mapping[str, Any]) -> str:
    """Say whom the figures are of, and what is known of them in the training."""
    shared, unknown = measured["num_shared_patients"], measured.get("batches_without_patients", ())
    copies = measured["batches_that_may_share_images"]
    lines = [
        f"{measured['num_patients']} patients of the split {measured['split']} of {measured['batch']}.",
        "Nothing tells whether the model was trained with patients of this split."
        if shared is None
        else f"The model was trained with {shared} patients of this split.",
    ]
    if unknown:
        lines.append(f"The patients of {', '.join(unknown)} are unknown: there an image counts as a patient.")
    if copies:
        lines.append(f"Training images of {', '.join(copies)} may be among those measured.")
    return " ".join(lines)


def _metric(goal: str, results: list[_Node], whom: str, how: str, said: str) -> list[_Node]:
    none: list[_Node] = [("MetricResult", [("Label", "Not measured"), ("ValueJson", "null")])]
    return [
        ("MetricGoal", goal),
        ("Results", results or none),
        ("Interpretation", said if results else "Nothing is known about this."),
        ("TestType", "Retrospective" if results else NOT_STATED),
        ("TestingDataDescription", whom if results else NOT_STATED),
        ("ValidationProcessAndJustification", how if results else NOT_STATED),
    ]


def _estimates(registry: Registry, version: Version, figures: Mapping[str, Any]) -> list[_Node]:
    """Tell the figures of the first encoder, which is the model."""
    found: list[_Node] = []
    if not figures:
        return found
    level = round(100 * float(_params(registry, version)["evaluate"]["bootstrap"]["level"]), 6)
    for name, figure in next(iter(figures.values())).items():
        if figure["low"] is None:
            continue
        value = {"kind": "estimate_ci", "estimate": figure["value"], "lower": figure["low"], "upper": figure["high"]}
        chance = figure.get("chance")
        label = f"{name} of {figure['n']} patients" + ("" if chance is None else f"; chance {chance:g}")
        found.append(
            ("MetricResult", [("Label", label), ("ValueJson", json.dumps({**value, "level": level, "unit": ""}))])
        )
    return found


def _single(label: str, rule: Mapping[str, Any]) -> _Node:
    """Tell the value of a rule of the gate; one that is not known breaks it."""
    value = None if rule["value"] is None else {"kind": "single", "value": rule["value"]}
    held = f"must be {rule['must_be']} {rule['bound']:g}, and {'is' if rule['passed'] else 'is not'}"
    return ("MetricResult", [("Label", f"{label}, {held}"), ("ValueJson", json.dumps(value))])


def _consent(batches: Mapping[str, Mapping[str, Any]]) -> str:
    return "\n".join(f"{name}: {batch['legal_basis'] or NOT_STATED}" for name, batch in batches.items()) or NOT_STATED


def _kind(config: TrainedConfig) -> str:
    kind = f"Deep neural network ({config.params.pretrain.backbone.name}), trained without labels"
    return kind if config.hardware is None else f"{kind}\n\nTraining was finished on: {config.hardware.text}"


def _input(config: TrainedConfig) -> str:
    grid, channels = config.params.grid, config.params.pretrain.backbone.in_channels
    return (
        f"Input: images of {channels} channel(s): {placement_text(grid.trim_level)}, of {grid.crop_px} × "
        f"{grid.crop_px} px. Output: {grid.t} × {grid.t} tokens"
    )


def _said(text: str | None) -> str:
    return text or NOT_STATED


def _config(registry: Registry, version: Version) -> TrainedConfig:
    config = read_config_of(registry.files(version))
    if not isinstance(config, TrainedConfig):
        raise ConfigError(f"{version.name}: its {CONFIG} is not that of a training")
    return config


def _params(registry: Registry, version: Version) -> Mapping[str, Any]:
    found: dict[str, Any] = parse_yaml(git(registry.root, "show", f"{version.commit}:{PARAMS}"))
    return found


def _committed(registry: Registry, version: Version, path: str) -> str:
    """Read a file as the version's commit has it; empty where it has none."""
    if not git(registry.root, "ls-tree", "--name-only", version.commit, "--", path):
        return ""
    return git(registry.root, "show", f"{version.commit}:{path}")


def _element(node: _Node) -> ElementTree.Element:
    name, content = node
    element = ElementTree.Element(name)
    if isinstance(content, str):
        element.text = _NOT_XML.sub("\ufffd", content)  # what XML cannot hold, as control characters
    else:
        element.extend(_element(child) for child in content)
    return element
