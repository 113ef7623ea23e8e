"""The whole of params.yaml as one typed tree, checked across sections, and the named configurations under configs/."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from ruamel.yaml import YAML

from ace.data.objectives import spec_of_epoch
from ace.embed.opening import EncoderParams
from ace.encoder_lines import encoder_deps, task_deps, with_encoders, with_tasks
from ace.evaluation.params import Encoders, EvaluateParams
from ace.gate.figures import check_figures
from ace.models.params import ImportParams
from ace.operations.params import OperationsParams
from ace.pretrain.params import PretrainParams
from ace.report.params import ReportParams
from shards.core.config import DEFAULT_PARAMS, Section, laid_over, read_params
from shards.core.errors import ConfigError, UserError
from shards.core.modality import check_mixture, pictures_of
from shards.core.params import BatchParams, GridParams, MixParams, ShardParams, check_batch_name
from shards.delivery.batches import batch_path, format_batch, read_batches, root_path, set_settings, settings_of
from shards.delivery.project import Project
from shards.format.layout import MANIFESTS
from shards.phantom.params import PhantomParams
from shards.reading.contamination import Origin, check_shared_images
from shards.runtime.atomic import make_private_folder, write_private_text, write_text

CONFIGS = Path("configs")
BASE, SUFFIX = "demo", ".yaml"
KEPT = ("batches", "mix", "finetune", "decide", "operations")
"""Sections that `use` leaves alone: registered deliveries, their tasks and the service belong to the project, not to a
configuration."""
REPLACED = ("checks",)
"""Mappings that an overlay replaces instead of adding to: bounds are about the figures of one configuration."""
ADDED: dict[str, dict[str, Any]] = {
    "composition": {"cuts": ["2x2"], "further_regions_per_patient": 1},
    "decomposition": {"further_candidates": []},
    "retrieval": {"further_sides": []},
}
"""Fields that were added to sections of `evaluate.properties`, with the values that measure as before."""


ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
"""Name of a folder in models/."""


class Config(Section):
    """Hold the whole of params.yaml, one section per stage.

    `grid` is shared by all stages, `batches` has one name per delivery, and `mix` has the batches that are trained on.
    """

    phantom: PhantomParams | None = None
    """The built-in dataset; a project without a batch of it needs no such section."""
    grid: GridParams
    """The one grid that shards, training and evaluation share."""
    shard: ShardParams
    """Settings of the stage `shard`; a batch may have its own in batches/NAME.yaml."""
    batches: dict[str, str] = Field(min_length=1)
    """Name → the path that its shards are made from, and that DVC tracks; the rest is in batches/NAME.yaml."""
    mix: dict[str, MixParams] = Field(min_length=1)
    """Name → its part in training."""
    pretrain: PretrainParams
    """The training of the first model, models/ace."""
    variants: dict[ModelName, dict[str, Any]]
    """Name → what differs from `pretrain` in another training, whose model becomes the folder models/NAME."""
    imports: dict[ModelName, ImportParams]
    """Name → an encoder that others trained, which becomes the model folder models/NAME."""
    encoders: Encoders
    """Name → a network that is measured. Gains are those of the first one over each of the others."""
    evaluate: EvaluateParams
    """Patients and properties that every encoder is measured on."""
    finetune: dict[str, str]
    """Name of a task in configs/tasks → the shard set that the stage `finetune` trains and measures it on."""
    decide: list[str] = Field(default=[], max_length=1)
    """The first encoder, if the stage `decide` is to say whether its model is accepted (`operations.gate`)."""
    report: ReportParams
    """Wording and drawing of the page reports/report.html."""
    operations: OperationsParams = OperationsParams()
    """The service's settings: how it takes new images in and trains again. A project without a service needs no such
    section."""

    @property
    def trained_batches(self) -> list[str]:
        """Return the names of the batches that training uses."""
        return [name for name, item in self.mix.items() if item.weight > 0]

    @cached_property
    def trainings(self) -> dict[str, PretrainParams]:
        """Map the params file's name of each training to its params: `pretrain`, and each variant of it."""
        own = self.pretrain.model_dump(mode="json", by_alias=True)
        variants = {
            f"variants.{name}": PretrainParams.from_params(merged(own, patch), f"variants.{name}")
            for name, patch in self.variants.items()
        }
        return {"pretrain": self.pretrain, **variants}

    @property
    def used_batches(self) -> list[str]:
        """Return the names of the batches that training or the evaluation uses."""
        return sorted({*self.trained_batches, self.evaluate.batch})

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        for name in self.batches:
            try:
                check_batch_name(name)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        if self.mix.keys() - self.batches.keys():
            raise ValueError(
                f"mix has {sorted(self.mix)}; batches has {sorted(self.batches)}: expected no other batches in mix"
            )
        if self.evaluate.batch not in self.batches:
            raise ValueError(f"evaluate.batch is '{self.evaluate.batch}'; expected one of {sorted(self.batches)}")
        if unknown := sorted(set(self.finetune.values()) - self.batches.keys()):
            raise ValueError(f"finetune names {', '.join(unknown)}; expected one of {sorted(self.batches)}")
        first = next(iter(self.encoders))
        if self.decide and self.decide[0] != first:
            raise ValueError(f"decide names {self.decide[0]}; expected the first of `encoders`, {first}")
        if self.operations.gate is not None:
            try:
                check_figures(self.operations.gate, self.evaluate)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        if self.decide and self.operations.gate is None:
            raise ValueError(f"decide names {first}, and operations.gate is empty; expected bounds there to decide by")
        if not self.trained_batches:
            raise ValueError("every batch in mix has weight 0; expected at least one above 0, to train on")
        names = ["ace", *self.variants, *self.imports]
        twice = [name for name, number in Counter(names).items() if number > 1]
        if twice:
            raise ValueError(
                f"'{twice[0]}' names two model folders: pretrain writes models/ace, and each item of variants and "
                "imports writes models/NAME; choose another name"
            )
        try:
            for where, training in self.trainings.items():
                if training.crops == "bank" and self.shard.num_bank_pairs == 0:
                    raise ValueError(
                        f"{where}.crops is 'bank' and shard.num_bank_pairs is 0; raise num_bank_pairs, or set crops to "
                        "fresh"
                    )
                with naming(where):
                    spec_of_epoch(training.objective, self.grid.spec, epoch=0)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self


@contextmanager
def naming(section: str) -> Iterator[None]:
    """Make what is raised about a training name its own section of the params file where it names `pretrain`.

    Args:
        section: `pretrain`, or `variants.NAME`, whose values are laid over those of `pretrain`.

    Raises:
        UserError: as it was raised inside, but for the name; a ConfigError that names no section begins with it.
    """
    try:
        yield
    except UserError as error:
        text = re.sub(r"\bpretrain(?=\.\w|: )", section, str(error))
        is_named = section == "pretrain" or section in text or not isinstance(error, ConfigError)
        raise type(error)(text if is_named else f"{section}: {text}") from None


def check_config(config: Config, batches: Mapping[str, BatchParams]) -> None:
    """Check what params.yaml alone cannot tell.

    These are grids of the batches, channels, token grids, weights of others, equal parts of a batch, dense features,
    and patients in the phantom.

    Args:
        config: The whole of params.yaml.
        batches: The files of the batches that training or the evaluation uses, at least.

    Raises:
        ConfigError: saying what was found and what is needed.
    """
    from ace.models.backbone import check_backbone
    from ace.models.weights import check_weights
    from ace.pretrain.pretrain import samples_per_rank
    from ace.pretrain.start import check_start
    from ace.protocol.dense import location_axis
    from ace.published.importing import check_import
    from shards.core.identity import PUBLIC_KEY, split_of
    from shards.phantom.study import count_images, patient_id

    _check_grids(config, batches)
    _check_shared_images(config, batches)
    pictures = {name: pictures_of(batches[name].source) for name in config.trained_batches}
    for where, training in config.trainings.items():
        with naming(where):
            check_mixture(pictures, is_accepted=training.accept_mixed_images)
            for name in config.used_batches:
                if name in config.mix:
                    config.mix[name].normalisation(training.backbone.in_channels, name)
            check_backbone(training.backbone, config.grid.spec)
            check_weights(training.backbone)
            check_start(training, is_required=True)
            # What one process cannot divide, several cannot either; how many there will be is not known here.
            samples_per_rank(training, 1)
    for name, item in config.imports.items():
        check_import(item, config.grid.t, where=f"imports.{name}")
    dense = config.evaluate.dense
    location_axis(config.grid.spec, dense.locations_per_cell, dense.window_step_cells)
    evaluated, phantom = batches[config.evaluate.batch], config.phantom
    if phantom is None:
        rendered = [name for name in config.used_batches if batches[name].source.kind == "phantom"]
        if rendered:
            raise ConfigError(
                f"batch {rendered[0]} is of the phantom, but params.yaml has no section `phantom`; restore the section"
            )
        return
    splits = evaluated.shard.splits
    by_patient = [split_of(PUBLIC_KEY.position(patient_id(number)), splits) for number in range(phantom.num_patients)]
    if evaluated.source.kind == "phantom":
        split = config.evaluate.split
        found = by_patient.count(split)
        for measured, section in config.evaluate.properties.chosen():
            needed = measured.min_patients(section)
            if found < needed:
                raise ConfigError(
                    f"phantom.num_patients {phantom.num_patients} gives {found} {split} patients and "
                    f"evaluate.properties.{measured.name} needs {needed}; raise num_patients or shard.splits.{split}"
                )
    if all(batches[name].source.kind == "phantom" for name in config.trained_batches):
        images = sum(count_images(phantom, number) for number, split in enumerate(by_patient) if split == "train")
        for where, training in config.trainings.items():
            if images < training.batch_size:
                raise ConfigError(
                    f"phantom.num_patients {phantom.num_patients} gives {images} training images and "
                    f"{where}.batch_size is {training.batch_size}; raise num_patients or shard.splits.train, or lower "
                    "batch_size"
                )


def _check_grids(config: Config, batches: Mapping[str, BatchParams]) -> None:
    """Refuse batches whose shards have another grid than params.yaml, since they cannot be trained on.

    Raises:
        ConfigError: a batch that is used has another grid, or one whose crop pairs are used has none.
    """
    for name in config.used_batches:
        grid, remedy = batches[name].grid, f"`python -m shards settings {name}` gives the batch those of params.yaml"
        own, wanted = grid.model_dump(), config.grid.model_dump()
        if own != wanted:
            keys = [key for key in wanted if own[key] != wanted[key]]
            found = ", ".join(f"grid.{key} {own[key]}" for key in keys)
            expected = ", ".join(str(wanted[key]) for key in keys)
            raise ConfigError(f"batches/{name}.yaml has {found}, params.yaml has {expected}; {remedy}")
        has_bank = batches[name].shard.num_bank_pairs > 0
        from_bank = [where for where, training in config.trainings.items() if training.crops == "bank"]
        if from_bank and name in config.trained_batches and not has_bank:
            raise ConfigError(
                f"{from_bank[0]}.crops is 'bank' and batches/{name}.yaml has shard.num_bank_pairs 0; set crops to "
                f"fresh, or raise shard.num_bank_pairs in params.yaml: {remedy}"
            )


def check_graph(config: Config, dvc: Path) -> None:
    """Check that stages that read every encoder depend on each one's model and answers, and on no others.

    Those that read the figures of every task depend on these likewise. Imported models that are there must have the
    grid's tokens.

    Args:
        config: The whole of params.yaml.
        dvc: The file dvc.yaml; one that is not there is not checked.

    Raises:
        ConfigError: a dependency is missing or one too many, or a model was imported for another number of tokens.
    """
    from ace.models.folder import CONFIG
    from ace.models.model_config import ImportedConfig, read_config

    if not dvc.is_file():
        return
    for name, encoder in config.encoders.items():
        folder = dvc.parent / encoder.model
        # Those of the section `imports` are made again when the grid changes.
        if folder.name in config.imports or not (folder / CONFIG).is_file():
            continue
        model = read_config(folder)
        if isinstance(model, ImportedConfig) and model.params.grid.t != config.grid.t:
            raise ConfigError(
                f"encoders.{name}: {encoder.model} was imported for {model.params.grid.t} tokens a side, and grid.t is "
                f"{config.grid.t}; import its weights again with `--tokens {config.grid.t}`"
            )
    stages = YAML(typ="safe", pure=True).load(dvc.read_text(encoding="utf-8"))["stages"]
    wrong = []
    for section, deps in (("encoders", encoder_deps(config.encoders)), ("finetune", task_deps(config.finetune))):
        for stage, (prefixes, expected) in deps.items():
            body = stages.get(stage, {})
            found = {dep for dep in body.get("do", body).get("deps", ()) if dep.startswith(prefixes)}
            if stage in stages and found != set(expected):
                wrong.append(
                    f"{stage}.deps has {', '.join(sorted(found)) or 'none of them'}, and `{section}` in params.yaml "
                    f"asks for {', '.join(sorted(expected)) or f'nothing of {prefixes[0]}'}"
                )
    if wrong:
        raise ConfigError(f"{dvc}: {'; '.join(wrong)}; `python -m ace encoder list` writes these there instead")


def list_encoders(encoders: Mapping[str, EncoderParams], dvc: Path) -> list[str]:
    """Make the stages that read every encoder depend on these and no others; a sentence for each that changed.

    Args:
        encoders: The section `encoders`.
        dvc: The file dvc.yaml; one that is not there stays so.

    Raises:
        ConfigError: the stages' deps are not written as lists of lines.
    """
    return _listed(dvc, lambda text: with_encoders(text, encoders))


def list_tasks(tasks: Iterable[str], dvc: Path) -> list[str]:
    """Make the stages that read the figures of every task depend on these and no others; a sentence for each changed.

    Args:
        tasks: Names in the section `finetune`.
        dvc: The file dvc.yaml; one that is not there stays so.

    Raises:
        ConfigError: the stages' deps are not written as lists of lines.
    """
    return _listed(dvc, lambda text: with_tasks(text, tasks))


def _listed(dvc: Path, edit: Callable[[str], tuple[str, list[str]]]) -> list[str]:
    if not dvc.is_file():
        return []
    text, changed = edit(dvc.read_text(encoding="utf-8"))
    if changed:
        write_text(dvc, text)
    return [f"{dvc}: {line}" for line in changed]


def _check_shared_images(config: Config, batches: Mapping[str, BatchParams]) -> None:
    """Refuse a batch to measure on that may share images with those trained on, as far as the datasets' names tell.

    Raises:
        ContaminationError: the same images may be in both, and nobody has said yes.
    """
    origins = {name: Origin(batch.source.kind, batch.source.shares_images_with) for name, batch in batches.items()}
    trained = {name: origins[name] for name in config.trained_batches}
    measured = config.evaluate.batch
    check_shared_images(trained, measured, origins[measured], is_accepted=config.evaluate.accept_shared_images)


def use(name: str, params: Path = DEFAULT_PARAMS, configs: Path = CONFIGS) -> list[str]:
    """Write the named configuration to `params`, keeping its comments; returns what changed as `key: old → new`.

    A configuration is an overlay on configs/demo.yaml, so that `use` gives the same file whatever stood there before.
    `evaluate.batch` stays too where the project does not have the configuration's batch (`register --only` took it
    out). Batches whose files have the sections `grid` and `shard` as they were in `params` get the new ones; others
    have settings of their own and keep them. The stages of dvc.yaml that read every encoder get the configuration's,
    and those that read the figures of tasks the project's.

    Args:
        name: Of the configuration, or the path of its file, as `studies/phantom/params.yaml`.
        params: The file params.yaml.
        configs: The folder of the named ones.

    Raises:
        ConfigError: no such configuration, or the result is not a valid one (then nothing is written).
    """
    with Project(params).editing():
        return _use(name, params, configs)


def _use(name: str, params: Path, configs: Path) -> list[str]:
    values = resolve(name, configs)
    yaml, document = _document(params)
    if values["evaluate"]["batch"] not in document.get("batches", {}) and "evaluate" in document:
        values["evaluate"] = {**values["evaluate"], "batch": document["evaluate"].get("batch")}
    before = read_params(params)
    changes: list[str] = []
    _assign(document, {key: value for key, value in values.items() if key not in KEPT}, "", changes)
    after = YAML(typ="safe", pure=True).load(_dump(yaml, document))
    config = Config.from_params(after, f"configuration '{name}'")
    followers = _followers(params, before)
    # Batches first: killed in between, the same command changes those that are left, for params.yaml is as it was.
    changes += set_settings(params, after, followers)
    changes += list_encoders(config.encoders, params.with_name("dvc.yaml"))
    changes += list_tasks(config.finetune, params.with_name("dvc.yaml"))
    if changes:
        write_text(params, _dump(yaml, document))
    return changes


def _followers(params: Path, values: Mapping[str, Any]) -> list[str]:
    """List the names of the batches that have the settings of params.yaml."""
    try:
        settings = settings_of(values, params)
    except ConfigError:  # a params.yaml that is no valid one yet
        return []
    names = [name for name in values.get("batches", {}) if batch_path(name, params.parent).is_file()]
    batches = read_batches(params, values, names) if names else {}
    return [name for name, batch in batches.items() if (batch.grid, batch.shard) == settings]


def migrate(params: Path = DEFAULT_PARAMS) -> list[str]:
    """Bring a project of an earlier version to this one, as far as its params.yaml is concerned.

    Batches that params.yaml held become files in batches/. The encoders that are measured, and the properties that they
    are measured for, get sections of their own, and these get what was added to them since, so that they measure what
    they did. In dvc.yaml the report gets to depend on the tasks that params.yaml names.

    Args:
        params: The file params.yaml; batches/ and data/manifests are made beside it.

    Returns:
        What was done, a sentence each; nothing where the project is of this version.

    Raises:
        ConfigError: the file is no valid one of the earlier version.
    """
    with Project(params).editing():
        return [
            *_migrate_batches(params),
            *_migrate_evaluation(params),
            *_migrate_properties(params),
            *_migrate_variants(params),
            *_migrate_tasks(params),
            *_migrate_decisions(params),
            # Before the report showed tasks, it depended on none.
            *list_tasks(read_params(params).get("finetune") or {}, params.with_name("dvc.yaml")),
        ]


def _migrate_batches(params: Path) -> list[str]:
    values = read_params(params)
    former = {name: item for name, item in (values.get("batches") or {}).items() if isinstance(item, Mapping)}
    if not former:
        return []
    grid, shard = settings_of(values, params)
    done = []
    for name, item in former.items():
        where = f"{params}: batches.{name}"
        mix = MixParams.from_params(item.get("mix"), f"{where}.mix")
        source = dict(item.get("source") or {})
        root = source.pop("root", None)
        batch = BatchParams.from_params(
            {
                "source": source,
                "measured": {"mean": mix.mean, "std": mix.std},
                "grid": grid.model_dump(),
                "shard": shard.model_dump(),
            },
            where,
        )
        if root is not None:
            make_private_folder(params.parent / MANIFESTS)
            write_private_text(root_path(name, params.parent), f"{root}\n")
        write_text(batch_path(name, params.parent), format_batch(name, batch))
        done.append(f"wrote {batch_path(name, params.parent)}")
    yaml, document = _document(params)
    position = list(document).index("batches")
    document.insert(position + 1, "mix", {name: document["batches"][name]["mix"] for name in former})
    document["batches"] = {name: item["source"]["dep"] for name, item in former.items()}
    write_text(params, _dump(yaml, document))
    return [*done, f"{params}: batches has a path for each batch now, and mix its part in training"]


def _migrate_evaluation(params: Path) -> list[str]:
    yaml, document = _document(params)
    former: Any = document.get("evaluate")
    if not hasattr(former, "insert") or "properties" in former or "correspondence" not in former:
        return []
    position = list(former).index("composition") if "composition" in former else 0
    properties = {
        name: former.pop(name) for name in ("composition", "decomposition", "correspondence") if name in former
    }
    if "batch" in properties.get("decomposition", {}):
        decomposition = properties["decomposition"]
        decomposition.insert(list(decomposition).index("batch"), "num_candidates", decomposition.pop("batch"))
    dense = {key: properties["correspondence"].pop(key) for key in ("locations_per_cell", "window_step_cells")}
    former.insert(position, "dense", dense)
    explorer = {"num_patients": 32, "num_mirrored": 16, "num_components": 64}
    former.insert(position + 1, "properties", {**properties, "colours": {}, "labels": {}, "explorer": explorer})
    encoders = {
        "trained": {"model": "models/ace", "network": "teacher"},
        "untrained": {"model": "models/ace", "network": "untrained"},
    }
    reference = former.pop("reference", None)
    place = list(document).index("evaluate")
    if "imports" not in document:
        document.insert(place, "imports", {} if reference is None else {"imagenet": reference})
        place += 1
    if reference is not None:
        encoders["imagenet"] = {"model": "models/imagenet", "network": "teacher"}
    document.insert(place, "encoders", encoders)
    write_text(params, _dump(yaml, document))
    return [
        f"{params}: encoders names the networks that are measured now, imports those that others trained, and "
        "evaluate.properties what they are measured for"
    ]


def _migrate_tasks(params: Path) -> list[str]:
    yaml, document = _document(params)
    if "finetune" in document or "report" not in document:
        return []
    document.insert(list(document).index("report"), "finetune", {})
    write_text(params, _dump(yaml, document))
    return [f"{params}: finetune names the tasks that `dvc repro finetune` trains on, none so far"]


def _migrate_decisions(params: Path) -> list[str]:
    yaml, document = _document(params)
    if "decide" in document or "report" not in document:
        return []
    document.insert(list(document).index("report"), "decide", [])
    write_text(params, _dump(yaml, document))
    return [f"{params}: decide names the encoder whose model the gate decides about, none so far"]


def _migrate_properties(params: Path) -> list[str]:
    yaml, document = _document(params)
    sections = (document.get("evaluate") or {}).get("properties") or {}
    missing = {
        name: {key: value for key, value in added.items() if key not in sections[name]}
        for name, added in ADDED.items()
        if sections.get(name) is not None
    }
    done = []
    for name, added in missing.items():
        sections[name].update(added)
        done += [f"{params}: evaluate.properties.{name} has {key}: {value} now" for key, value in added.items()]
    if done:
        write_text(params, _dump(yaml, document))
    return done


def _migrate_variants(params: Path) -> list[str]:
    yaml, document = _document(params)
    if "variants" in document or "pretrain" not in document:
        return []
    document.insert(list(document).index("pretrain") + 1, "variants", {})
    if "report" in document:
        document["report"].setdefault("num_pictured", 4)
    write_text(params, _dump(yaml, document))
    return [f"{params}: variants has the other trainings, none so far, and report.num_pictured limits the pictures"]


def _document(params: Path) -> tuple[YAML, Any]:
    """Read a params file with its comments, and what writes it."""
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml, yaml.load(params.read_text(encoding="utf-8"))


def resolve(name: str, configs: Path = CONFIGS) -> dict[str, Any]:
    """Compute the complete values of a configuration: its file laid over configs/demo.yaml.

    A file with the line `base: NAME` is laid over that configuration instead, so that a variant is a few lines; with
    `base: [A, B]` over B laid over A.

    Args:
        name: Of a file in `configs`, or the path of any other file, with its ending.
        configs: The folder of the named ones.

    Raises:
        ConfigError: no such configuration, or configurations are each other's base.
    """
    return _laid_over(_overlays(name, configs, above=()), configs)


def complete(overlay: Mapping[str, Any], configs: Path = CONFIGS) -> dict[str, Any]:
    """Compute the complete values of a configuration whose file has this content."""
    return _laid_over(_with_bases(overlay, configs, above=()), configs)


def _laid_over(overlays: Sequence[Mapping[str, Any]], configs: Path) -> dict[str, Any]:
    values = read_params(configs / f"{BASE}{SUFFIX}")
    for overlay in overlays:
        values = merged(values, overlay)
    return values


def _overlays(name: str, configs: Path, above: tuple[str, ...]) -> list[Mapping[str, Any]]:
    """List what is laid over configs/demo.yaml one after another, a configuration's bases before its own."""
    if name == BASE:
        return []
    path = Path(name) if name.endswith(SUFFIX) else configs / f"{name}{SUFFIX}"
    if not path.is_file():
        known = sorted(path.stem for path in configs.glob(f"*{SUFFIX}"))
        raise ConfigError(f"{configs}/: has no configuration '{name}'; expected one of {', '.join(known)}")
    if name in above:
        raise ConfigError(
            f"{configs}/: {' → '.join([*above, name])}: a configuration cannot be its own base; change one `base`"
        )
    return _with_bases(read_params(path), configs, (*above, name))


def _with_bases(overlay: Mapping[str, Any], configs: Path, above: tuple[str, ...]) -> list[Mapping[str, Any]]:
    base = overlay.get("base", BASE)
    bases = base if isinstance(base, list) else [base]
    own = {key: value for key, value in overlay.items() if key != "base"}
    return [*(item for name in bases for item in _overlays(str(name), configs, above)), own]


def merged(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Lay an overlay's values over those of `base`; an empty mapping in the overlay empties the one in `base`.

    The arguments of another architecture than the base's take the place of the base's.
    """
    return laid_over(base, overlay, _replaced)


def _replaced(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> tuple[str, ...]:
    is_other = overlay.get("name", base.get("name")) != base.get("name")
    return (*REPLACED, "model_args") if is_other else REPLACED


def _assign(document: MutableMapping[str, Any], values: Mapping[str, Any], where: str, changes: list[str]) -> None:
    """Make `document` equal to `values` in place, touching only what differs."""
    for key in [key for key in document if key not in values and where]:
        changes.append(f"{where}{key}: {document.pop(key)} → (none)")
    for key, value in values.items():
        if value and isinstance(value, Mapping) and isinstance(document.get(key), MutableMapping):
            if not document[key]:
                document[key].fa.set_block_style()  # what was written as {} gets a line for each item
            _assign(document[key], value, f"{where}{key}.", changes)
        elif key not in document or document[key] != value:
            changes.append(f"{where}{key}: {document.get(key, '(none)')} → {value}")
            document[key] = value


def _dump(yaml: YAML, document: Any) -> str:
    text = StringIO()
    yaml.dump(document, text)
    return text.getvalue()
