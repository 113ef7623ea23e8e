"""`study open`, `study record`: the steps of `make study`."""

import argparse


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `study` to the command line."""
    study = commands.add_parser("study", help="open or record a study, the steps of `make study`").add_subparsers(
        required=True, metavar="COMMAND"
    )
    for word, function in (("open", study_open), ("record", study_record)):
        command = study.add_parser(word, help=f"{word} a study", description=function.__doc__)
        command.add_argument("name", metavar="NAME", help="name of the study, a folder in studies/")
        command.add_argument(
            "--run",
            dest="run_of",
            default="params",
            metavar="RUN",
            help="run of the study, whose params file is studies/NAME/RUN.yaml; default: params",
        )
        command.set_defaults(run=function)


def study_open(arguments: argparse.Namespace) -> None:
    """Make a study's work tree, or bring it to the commit that is checked out; `make study` calls this."""
    from ace.study import Study, open_study

    print(open_study(Study(arguments.name, arguments.run_of)))


def study_record(arguments: argparse.Namespace) -> None:
    """Write what is committed of a finished study: dvc.lock, figures and their table; `make study` calls this."""
    from ace.study import Study, record_study

    print("wrote", *record_study(Study(arguments.name, arguments.run_of)), sep="\n  ")
