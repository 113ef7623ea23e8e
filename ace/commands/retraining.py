"""`decide`, `retrain`: train again when enough new images are there, and say whether the new model is accepted."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from ace.commands.accepted_models import actor_of, add_deciding_options, add_json, add_registry_options, registry_of
from ace.commands.evaluation import paths_of, with_folders
from ace.commands.options import add_shards_option, add_why_option
from shards.cli import add_params_options, values_of
from shards.runtime.text import count_of

TRAINING = Path("metrics/pretrain/metrics.json")


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `decide` and `retrain` to the command line."""
    command = commands.add_parser("decide", help="hold the new model to the gate", description=decide.__doc__)
    add_params_options(command)
    add_shards_option(command)
    command.set_defaults(run=decide)

    retrain = commands.add_parser(
        "retrain", help="train again when enough new images are there, and accept the model or not"
    ).add_subparsers(required=True, metavar="COMMAND")
    for word, function, text in (
        ("due", due, "say whether a retraining is due"),
        ("run", run, "go the whole way once, if a retraining is due"),
        ("abandon", abandon, "give up the retraining that has begun"),
    ):
        command = retrain.add_parser(word, help=text, description=function.__doc__)
        add_registry_options(command)
        if word == "due":
            add_json(command)
        else:
            add_deciding_options(command)
        if word == "abandon":
            add_why_option(command)
        command.set_defaults(run=function)


def decide(arguments: argparse.Namespace) -> None:
    """Hold the model of the first encoder to the rules of operations.gate, and write metrics/gate.json.

    It is compared with the encoders `untrained` and, where there is one, `incumbent`, by the answers that `measure`
    wrote. Nothing is promoted.
    """
    from ace.evaluation.params import EvaluateParams, parse_encoders
    from ace.gate.decide import check_frozen, decide
    from ace.operations.params import OperationsParams
    from ace.operations.retraining import GATE, check_gate_is_that_of_the_log
    from ace.pretrain.params import PretrainParams
    from shards.core.errors import ConfigError
    from shards.runtime.atomic import write_text

    values, where = values_of(arguments), str(arguments.params)
    gate = OperationsParams.from_params(values.get("operations") or {}, f"{where}: operations").gate
    if gate is None:
        raise ConfigError(f"{where}: operations.gate is empty; expected bounds there (docs/operations.md)")
    params = EvaluateParams.from_params(values.get("evaluate"), f"{where}: evaluate")
    pretrain = PretrainParams.from_params(values.get("pretrain"), f"{where}: pretrain")
    encoders = with_folders(parse_encoders(values.get("encoders"), where))
    check_frozen(gate.frozen, params.batch, values.get("mix") or {}, Path(arguments.shards))
    decision = decide(
        gate, params, encoders, pretrain.collapse, pretrain.global_head.out_dim, paths_of(arguments), TRAINING
    )
    check_gate_is_that_of_the_log(decision.gate_sha256, arguments.params.parent)
    content = decision.to_json()
    write_text(GATE, json.dumps(content, indent=1) + "\n")
    print(f"{'accepted' if content['accepted'] else 'not accepted'}: {content['sentence']}")


def due(arguments: argparse.Namespace) -> None:
    """Say whether a retraining is due, and why: how many new images there are, a hold, or one that has begun."""
    from ace.operations.retraining import Retraining, num_uses

    retraining = Retraining(registry_of(arguments))
    found = retraining.due()
    if arguments.json:
        print(json.dumps(asdict(found)))
        return
    print(f"{'due' if found.due else 'not due'}: {found.reason}")
    settings = retraining.settings()
    if settings is not None:
        frozen = settings.gate.frozen
        uses = num_uses(retraining.registry.events(), frozen.fingerprint)
        print(f"the frozen set {frozen.batch} was used for {count_of(uses, 'decision')}")


def run(arguments: argparse.Namespace) -> int:
    """Pin the accepted model, train, measure, commit, and accept the new model or not; nothing, if nothing is due.

    A call that was killed is finished by the same command. If the service is stopped, this one says so and ends. If
    another call is at work, on a retraining or on deliveries, it ends with exit code 75: try again later.
    """
    from ace.engine.stop import EXIT_CODE
    from ace.operations.errors import BusyError, StoppedError
    from ace.operations.retraining import Retraining

    registry = registry_of(arguments)
    try:
        for line in Retraining(registry).run(actor_of(registry, arguments)):
            print(line, flush=True)
    except (BusyError, StoppedError) as error:
        print(error, file=sys.stderr)
        return EXIT_CODE if isinstance(error, BusyError) else 0
    return 0


def abandon(arguments: argparse.Namespace) -> None:
    """Give up the retraining that has begun and not ended; the same images and params are not tried again."""
    from ace.operations.retraining import Retraining

    registry = registry_of(arguments)
    event = Retraining(registry).abandon(actor_of(registry, arguments), arguments.why)
    print(f"the retraining {event.facts['run_key'][:8]} is abandoned")
