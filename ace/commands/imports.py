"""`import`: turn weights that others trained into a model."""

import argparse
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING

from ace.commands.options import MODELS, add_architecture_options, positive
from shards.cli import add_params_options, values_of

if TYPE_CHECKING:
    from ace.models.weights import WeightsReport


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `import` to the command line."""
    command = commands.add_parser(
        "import",
        help="turn weights that others trained into a model",
        description=cleandoc(import_.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_params_options(command)
    command.add_argument("file", type=Path, nargs="?", metavar="FILE", help="a file of weights: .pth or .safetensors")
    command.add_argument(
        "--name", metavar="NAME", help="instead of FILE: name of an encoder in the section `imports` of the params file"
    )
    command.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"folder of the model; required with FILE, and must not exist; with --name, the default is {MODELS}/NAME",
    )
    command.add_argument(
        "--architecture",
        metavar="NAME",
        help="architecture of the weights in FILE: timm's name, or swin_b, vit_b or vit_b16 for the authors' files",
    )
    add_architecture_options(command)
    command.add_argument(
        "--tokens",
        type=positive(int),
        default=14,
        metavar="T",
        help="tokens per side of the input, an even number; default: 14, as in the paper",
    )
    command.add_argument(
        "--network",
        choices=["teacher", "student"],
        default="teacher",
        help="the network to take from a file of the authors; default: teacher",
    )
    command.set_defaults(run=import_)


def import_(arguments: argparse.Namespace) -> None:
    """Turn weights that others trained into a model folder: of any architecture in timm, or of the method's authors.

    `evaluate`, `embed` and `export` take the folder like that of any other model, and normalise and size each image
    as this encoder needs it. Its config.json records how, and the name and sha256 of the file. Reading a file of
    weights never runs code from it.

    For a file of weights, name its architecture as timm does (timm.list_models() lists all names):

      python -m ace import swin_t.pth --architecture swin_tiny_patch4_window7_224 --out models/swin
      python -m ace import vit.safetensors --architecture vit_base_patch16_224 --tokens 28 --out models/vit

    The side of the input in pixels is --tokens times the stride of the architecture. Position embeddings and tables of
    another size are resampled by timm's function for the architecture; the command then says how many. A missing or an
    additional tensor is an error.

    The architectures swin_b, vit_b (both at 448 px) and vit_b16 (224 px) are those of the files that the method's
    authors published. Nothing in these files is resampled, and an unknown key is an error.

    Encoders to compare with are listed in the section `imports` of params.yaml. Each is a stage of its own, which runs:

      python -m ace import --name imagenet
    """
    from ace.models.params import ImportParams
    from ace.published.importing import ARCHITECTURES, import_checkpoint, import_timm, one_import
    from shards.core.errors import ConfigError
    from shards.core.params import GridParams

    if (arguments.name is None) == (arguments.file is None):
        raise ConfigError(
            f"found {'neither' if arguments.file is None else 'both'} of FILE and --name; give a FILE of weights with "
            "--architecture and --out, or the --name of an encoder in the section `imports` of params.yaml"
        )
    if arguments.name is not None:
        values = values_of(arguments)
        imports, where = values.get("imports") or {}, f"{arguments.params}: imports.{arguments.name}"
        if arguments.name not in imports:
            raise ConfigError(
                f"{where}: not found; the section `imports` has {', '.join(imports) or 'no encoder'}: give one of "
                "these as --name, or add it there"
            )
        params = ImportParams.from_params(imports[arguments.name], where)
        t = GridParams.from_params(values.get("grid"), f"{arguments.params}: grid").t
        out = arguments.out or MODELS / arguments.name
        _tell_import(out, import_timm(params, t, out, where=where))
        return
    if arguments.architecture is None or arguments.out is None:
        raise ConfigError(
            f"{arguments.file}: also give --architecture, the architecture of these weights, and --out, the new folder"
        )
    if arguments.out.exists():
        raise ConfigError(f"{arguments.out} exists; choose another --out or remove it")
    if arguments.architecture not in ARCHITECTURES:
        params = one_import(
            arguments.file,
            arguments.architecture,
            dict(arguments.model_arg),
            in_channels=arguments.channels,
            mean=arguments.mean,
            std=arguments.std,
        )
        _tell_import(arguments.out, import_timm(params, arguments.tokens, arguments.out, where=str(arguments.file)))
        return
    keys = import_checkpoint(
        arguments.file,
        arguments.out,
        ARCHITECTURES[arguments.architecture],
        network=arguments.network,
        mean=arguments.mean or 0.5056,
        std=arguments.std or 0.252,
    )
    print(
        f"wrote {arguments.out}: all {len(keys.weights)} tensors of the backbone were loaded. Left out: "
        f"{len(keys.derived)} tables that follow from the architecture, and {len(keys.heads)} tensors of heads and "
        "other parts, whose names are in its config.json"
    )


def _tell_import(out: Path, report: "WeightsReport") -> None:
    print(
        f"wrote {out}: all {report.num_parameters:,} parameters of the backbone were loaded, in {len(report.used)} "
        f"tensors, {len(report.adapted)} of them resampled or fitted to other channels; {len(report.unused)} tensors "
        "of the file were left out. Its config.json names both"
    )
