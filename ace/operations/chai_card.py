"""Write the card of a version in the Applied Model Card form of the Coalition for Health AI (schema v0.2).

The form is XML; https://mc.chai.org has its schema. What the project knows is filled in: figures of the version's
commit with their intervals, what it was trained with, what the gate said of subgroups. What only its owner knows comes
from the section `operations.card`, and what nobody has stated is said to be not stated.
"""

import json
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from pydantic import ValidationError

from ace.journal.card import ORIGINS
from ace.models.folder import CONFIG, WEIGHTS
from ace.models.model_config import TrainedConfig
from ace.models.notice import NOTICE
from ace.operations.clone import git
from ace.operations.history import Version
from ace.operations.lineage import trace
from ace.operations.params import CardParams
from ace.operations.registry import Registry
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
_Content = str | list["_Node"]
_Node = tuple[str, _Content]


def chai_card(registry: Registry, version: Version, stated: CardParams) -> str:
    """Write the card of a version, as XML.

    Args:
        registry: The registry.
        version: The version.
        stated: What its owner says of it.

    Raises:
        OperationsError: the commit or the model's bytes are not there.
        ConfigError: the model's config.json is not that of a training.
    """
    config = _config(registry, version)
    level = 100 * _params(registry, version)["evaluate"]["bootstrap"]["level"]
    figures, gate = (_committed(registry, version, path) for path in (_FIGURES, _GATE))
    if figures.get("measured", {}).get("model_sha256") != version.files[WEIGHTS["teacher"]]:
        figures, gate = {}, {}  # they are another model's, which a commit may still have
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
                ("ReleaseStage", _said(stated.release_stage)),
                ("ReleaseDate", f"{version.event.time:%Y-%m-%d}"),
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
        ("KeyMetrics", _metrics(figures, gate, level)),
        (
            "Resources",
            [
                ("PeerReviewedPublications", "ACE, WACV 2025, arXiv 2501.10131"),
                ("PatientConsentOrDisclosure", _consent(batches)),
            ],
        ),
        ("Bibliography", PAPER),
    ]
    root = _element(("AppliedModelCard", nodes))
    root.set("xmlns", NAMESPACE)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _trust(config: TrainedConfig, batches: Mapping[str, Mapping[str, Any]], stated: CardParams) -> list[_Node]:
    seen = [f"{item.batch}: {item.num_images} training images of {item.patients} patients" for item in config.shards]
    sources = sorted({batch["source"] for batch in batches.values()})
    return [
        (
            "AISystemFacts",
            [
                ("OutcomesAndOutputs", "An embedding of an image, and one token for each cell of a grid over it."),
                ("ModelType", f"Deep neural network ({config.params.pretrain.backbone.name}), trained without labels"),
                ("InputDataSource", f"Images read as: {', '.join(sources) or 'not known'}"),
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


def _metrics(figures: Mapping[str, Any], gate: Mapping[str, Any], level: float) -> list[_Node]:
    first = next(iter(figures), "")
    own = figures.get(first, {})
    measured = figures.get("measured", {})
    whom = (
        f"{measured['num_patients']} patients of the split {measured['split']} of {measured['batch']}, "
        f"{measured['num_shared_patients']} of whom the model was trained with"
        if measured
        else NOT_STATED
    )
    rules = gate.get("rules", [])
    fair = [rule for rule in rules if rule.get("subgroup") and rule["value"] is not None]
    safe = [rule for rule in rules if rule["rule"] in ("not_leaked", "not_collapsed")]
    how = "Intervals by bootstrap over patients."
    how += " The bounds of the gate were written down before the training." if gate else " There was no gate."
    return [
        (
            "UsefulnessUsabilityEfficacy",
            _metric("Properties of the embeddings; docs/method.md defines each", _estimates(own, level), whom, how),
        ),
        (
            "FairnessEquity",
            _metric(
                "Not worse than the accepted model in any subgroup, by the low end of the interval of the difference",
                [_single(f"{rule['figure']}, {rule['subgroup']} ({rule['patients']} patients)", rule) for rule in fair],
                whom,
                how,
            ),
        ),
        (
            "SafetyReliability",
            _metric(
                "No measured patient among those trained with, and no collapse of the training",
                [_single(f"{rule['figure']}, must be {rule['must_be']} {rule['bound']:g}", rule) for rule in safe],
                whom,
                how,
            ),
        ),
    ]


def _metric(goal: str, results: list[_Node], whom: str, how: str) -> list[_Node]:
    none: list[_Node] = [("MetricResult", [("Label", "Not measured"), ("ValueJson", "null")])]
    return [
        ("MetricGoal", goal),
        ("Results", results or none),
        ("Interpretation", "See the goal." if results else "Nothing is known about this."),
        ("TestType", "Internal, retrospective" if results else NOT_STATED),
        ("TestingDataDescription", whom if results else NOT_STATED),
        ("ValidationProcessAndJustification", how if results else NOT_STATED),
    ]


def _estimates(figures: Mapping[str, Mapping[str, Any]], level: float) -> list[_Node]:
    found: list[_Node] = []
    for name, figure in figures.items():
        if figure.get("low") is None:
            continue
        value = {"kind": "estimate_ci", "estimate": figure["value"], "lower": figure["low"], "upper": figure["high"]}
        chance = figure.get("chance")
        label = f"{name} of {figure['n']} patients" + ("" if chance is None else f"; chance {chance:g}")
        found.append(
            ("MetricResult", [("Label", label), ("ValueJson", json.dumps({**value, "level": level, "unit": ""}))])
        )
    return found


def _single(label: str, rule: Mapping[str, Any]) -> _Node:
    return ("MetricResult", [("Label", label), ("ValueJson", json.dumps({"kind": "single", "value": rule["value"]}))])


def _consent(batches: Mapping[str, Mapping[str, Any]]) -> str:
    return "\n".join(f"{name}: {batch['legal_basis'] or NOT_STATED}" for name, batch in batches.items()) or NOT_STATED


def _input(config: TrainedConfig) -> str:
    grid, channels = config.params.grid, config.params.pretrain.backbone.in_channels
    return (
        f"Input: images of {channels} channel(s), resized to {grid.crop_px} × {grid.crop_px} px. Output: {grid.t} × "
        f"{grid.t} tokens"
    )


def _said(text: str | None) -> str:
    return text or NOT_STATED


def _config(registry: Registry, version: Version) -> TrainedConfig:
    path = registry.files(version)[CONFIG]
    try:
        return TrainedConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ConfigError(f"{version.name}: its {CONFIG} is not that of a training: {error}") from None


def _params(registry: Registry, version: Version) -> Mapping[str, Any]:
    found: dict[str, Any] = parse_yaml(git(registry.root, "show", f"{version.commit}:{PARAMS}"))
    return found


def _committed(registry: Registry, version: Version, path: str) -> Mapping[str, Any]:
    """Read a JSON file as the version's commit has it; nothing where it has none."""
    if not git(registry.root, "ls-tree", "--name-only", version.commit, "--", path):
        return {}
    found: dict[str, Any] = json.loads(git(registry.root, "show", f"{version.commit}:{path}"))
    return found


def _element(node: _Node) -> ElementTree.Element:
    name, content = node
    element = ElementTree.Element(name)
    if isinstance(content, str):
        element.text = content
    else:
        element.extend(_element(child) for child in content)
    return element
