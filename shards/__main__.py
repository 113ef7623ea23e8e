"""`python -m shards`: register datasets and images, build shards from them, check the shards and look at them."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from shards.checking.commands import add_look_commands
from shards.cli import add_params_options, batch_of, count, run_command, values_of
from shards.sources.catalogue import add_sources_command


def phantom(arguments: argparse.Namespace) -> None:
    """Render the built-in dataset: radiographs of one scanned chest, warped into many virtual patients."""
    from shards.phantom.dataset import build_phantom
    from shards.phantom.params import PhantomParams

    values = values_of(arguments)
    flags = {
        "num_patients": arguments.num_patients,
        "images_per_patient": arguments.images_per_patient,
        "size_px": arguments.size,
        "seed": arguments.seed,
    }
    section = {**values.get("phantom", {}), **{key: value for key, value in flags.items() if value is not None}}
    params = PhantomParams.from_params(section, f"{arguments.params}: phantom")
    build_phantom(params, arguments.out, num_workers=arguments.num_workers)


def shard(arguments: argparse.Namespace) -> None:
    """Build the shards of one batch.

    Finished tars are kept. After a kill or a full disk, the same command goes on and leaves the same bytes as a build
    without interruption.
    """
    from shards.build.stage import build_shards
    from shards.core.params import RegisteredSourceParams
    from shards.delivery.published_key import warn_of_published_key
    from shards.runtime.execution import Processes, RayCluster

    batch = batch_of(arguments, arguments.batch)
    out = arguments.out or Path("data/shards") / arguments.batch
    execution = RayCluster(arguments.ray) if arguments.ray else Processes(arguments.num_workers)
    if isinstance(batch.source, RegisteredSourceParams):
        warn_of_published_key(batch.source.id_key_fingerprint)
    build_shards(
        arguments.batch,
        batch.source,
        batch.grid,
        batch.shard,
        out,
        selection=batch.selection,
        execution=execution,
    )


def register(arguments: argparse.Namespace) -> None:
    """Add a dataset or a folder of images to the project as a new batch.

    This writes a manifest of the files to data/manifests, and batches/NAME.yaml, which decides the shards; it adds an
    item to `batches` and `mix` in the params file and a line to dvc.yaml. The images stay where they are, and no shard
    is built yet: `dvc repro` does that. Register a folder that has grown again under the next name: images of its
    earlier batches are left out, and their patients keep their splits. With --only the project has no other batch.
    """
    from shards.core.errors import ConfigError
    from shards.delivery.project import Project
    from shards.delivery.register import check_paths_fit, register_batch
    from shards.delivery.selection import parse_select
    from shards.sources.datasets.dicom_tree import DicomTreeSource
    from shards.sources.datasets.folder import FolderSource
    from shards.sources.patients import parse_patient_rule
    from shards.sources.registry import open_source

    select = None if arguments.select is None else parse_select(arguments.select)
    source = open_source(arguments.source)
    if isinstance(source, FolderSource | DicomTreeSource):
        rule = parse_patient_rule(arguments.patient_from) if arguments.patient_from is not None else None
        source = replace(source, labels=arguments.labels, patient_from=rule)
        if arguments.labels and isinstance(source, FolderSource):
            check_paths_fit(arguments.labels, arguments.root)
    elif arguments.labels:
        raise ConfigError(
            f"--labels belongs to --source folder or dicom; {arguments.source} brings its own labels: leave the option "
            "out"
        )
    elif arguments.patient_from is not None:
        raise ConfigError(
            f"--patient-from belongs to --source folder or dicom; {arguments.source} names its own patients: leave the "
            "option out"
        )
    register_batch(
        arguments.name,
        arguments.root,
        source,
        weight=arguments.weight,
        split_rule=arguments.splits,
        with_sex=arguments.sex,
        site=arguments.site,
        modality=arguments.modality,
        only=arguments.only,
        normalize=arguments.normalize,
        select=select,
        project=Project(arguments.params, arguments.dvc),
    )


def remove(arguments: argparse.Namespace) -> None:
    """Take a batch out of the project: its items of `batches` and `mix` in the params file, and its lines in dvc.yaml.

    batches/NAME.yaml, the images, the manifest and the shards stay on the disk. Registering the batch again brings it
    back.
    """
    from shards.delivery.project import Project, remove_batch

    remove_batch(arguments.name, Project(arguments.params, arguments.dvc))


def keep(arguments: argparse.Namespace) -> None:
    """Keep single images in a batch's shards although the quality pass would leave them out.

    The keys of images are shown in quality.parquet and quality.png of the shards, and in
    data/manifests/NAME.quarantine.csv. The kept ones are listed in data/manifests/NAME.keep.txt, one key per line.
    After editing that list, give the command without keys.
    """
    from shards.delivery.project import Project, keep_images

    keep_images(arguments.name, arguments.keys, Project(arguments.params))


def exclude(arguments: argparse.Namespace) -> None:
    """Exclude images of a batch from training, evaluation, embedding and the report; its shards stay as they are.

    `show`, `verify` and quality.parquet give the keys of images. The excluded ones are listed in
    data/manifests/NAME.exclude.txt, one per line: the key of an image, or `patient` and the pseudonym of a patient.
    After editing that list, give the command without keys.
    """
    from shards.checking.exclude import exclude_images
    from shards.delivery.project import Project
    from shards.format.exclusion import list_path, read_exclusion

    project = Project(arguments.params, arguments.dvc)
    if arguments.list:
        excluded = read_exclusion(arguments.name, project.root)
        text = list_path(arguments.name, project.root).read_text(encoding="utf-8") if excluded else ""
        print(text or f"no image of {arguments.name} is excluded")
    else:
        keys = [*arguments.keys, *(arguments.undo or ())]
        exclude_images(arguments.name, keys, arguments.patient, project, undo=arguments.undo is not None)


def settings(arguments: argparse.Namespace) -> None:
    """Give batches the sections `grid` and `shard` that the params file has now.

    The next `dvc repro` then builds their shards again. Each batch has its own copy of these sections in
    batches/NAME.yaml, made when it was registered, so that a change in the params file alone builds no shards again.
    """
    from shards.delivery.project import Project, apply_settings

    apply_settings(arguments.names, Project(arguments.params))


def relocate(arguments: argparse.Namespace) -> None:
    """Say where a batch's images are now, after their folder was moved.

    Nothing is built or trained again, because a batch is defined by its manifest, wherever its files are.
    """
    from shards.delivery.project import Project, relocate_batch

    relocate_batch(arguments.name, arguments.root, Project(arguments.params))


def new_key(arguments: argparse.Namespace) -> None:
    """Write a new identity key: the secret under which ids become pseudonyms and patients get their splits."""
    from shards.core.identity import KEY_FILE_VARIABLE, create_key

    fingerprint = create_key(arguments.path)
    print(f"wrote {arguments.path}, which only you can read; keep it out of git and DVC, and a copy in a safe place")
    print(f"now run: export {KEY_FILE_VARIABLE}={arguments.path}")
    print(f"its fingerprint is {fingerprint}; `register` writes it to batches/NAME.yaml")


_EPILOG = """from images to shards:
  python -m shards sources                               list datasets, and the files that each needs
  python -m shards key new ~/ace-id.key                  once; then export ACE_ID_KEY_FILE=~/ace-id.key
  python -m shards register NAME FOLDER --source KIND    add a dataset or your own images
  python -m shards build --batch NAME                    build its shards; `dvc repro` runs this
  python -m shards verify data/shards/NAME               check the shards; then see stats, show
  python -m shards gallery --batch NAME --out FILE.html  look through all images
  python -m shards keep NAME KEY …                       keep images that the quality pass left out by mistake
  python -m shards exclude NAME KEY …                    exclude images from everything that reads the batch
  python -m shards relocate NAME FOLDER                  say where its images are after a move
  python -m shards remove NAME                           take the batch out of the project
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the command line of `python -m shards`."""
    parser = argparse.ArgumentParser(
        prog="python -m shards",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "phantom", help="render the built-in dataset of real anatomy", description=phantom.__doc__
    )
    add_params_options(command)
    section = "in the section `phantom` of the params file"
    command.add_argument("--out", type=Path, default=Path("data/phantom"), metavar="DIR", help="default: data/phantom")
    command.add_argument(
        "--num-patients", type=int, metavar="N", help=f"virtual patients; default: num_patients {section}"
    )
    command.add_argument(
        "--images-per-patient",
        type=int,
        metavar="M",
        help=f"at most M images of each patient; default: images_per_patient {section}",
    )
    command.add_argument(
        "--size",
        type=int,
        metavar="PX",
        help=f"height and width of an image in pixels, at most 1024; default: size_px {section}",
    )
    command.add_argument("--seed", type=int, metavar="S", help=f"seed of all draws; default: seed {section}")
    command.add_argument("--num-workers", type=count, metavar="N", help="processes that render; default: one per core")
    command.set_defaults(run=phantom)

    command = commands.add_parser(
        "shard", aliases=["build"], help="build the shards of one batch", description=shard.__doc__
    )
    add_params_options(command)
    command.add_argument("--batch", required=True, metavar="NAME", help="a key of `batches` in the params file")
    command.add_argument("--out", type=Path, metavar="DIR", help="default: data/shards/NAME")
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "--num-workers", type=count, metavar="N", help="processes that build tars; default: one per core"
    )
    where.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="build on a Ray cluster (ray://HOST:10001, auto, or local) instead; its machines must see the images, the "
        "project and ACE_SCRATCH under the same paths",
    )
    command.set_defaults(run=shard)

    command = commands.add_parser("register", help="add a dataset or your own images", description=register.__doc__)
    command.add_argument("name", metavar="NAME", help="name of the new batch, as clinic-b000; a batch never changes")
    command.add_argument(
        "root", type=Path, metavar="FOLDER", help="folder of the images; the files stay where they are"
    )
    command.add_argument(
        "--source",
        default="folder",
        metavar="KIND",
        help="the dataset in the folder, one of the kinds that `python -m shards sources` lists; default: folder, "
        "which is any images",
    )
    command.add_argument(
        "--labels",
        type=Path,
        metavar="CSV",
        help="a CSV of labels and more. For `folder`: the column path, and optionally patient, study, view, split, "
        "sex, age_years, labels (1, 0, -1 or empty), masks (mask:NAME), boxes and landmarks (box:LABEL, landmark:NAME, "
        "height, width); images without a row are left out. For `dicom`: the column sop_uid, and labels",
    )
    command.add_argument(
        "--patient-from",
        metavar="REGEX",
        help="for `folder` and `dicom`: a regular expression that is searched in each image's path below the folder; "
        "the patient is its first group, or all that it matches. Default: the column patient of the CSV, or DICOM's "
        "Patient ID; without either, images are split one by one",
    )
    command.add_argument(
        "--site",
        metavar="NAME",
        help="for `folder` and `dicom`: the hospital or project that gave the patients their ids; the same id means "
        "the same person within a site, and different people at two sites. Default: the site of earlier batches of "
        "this folder or name, otherwise the batch's name without its number",
    )
    command.add_argument(
        "--modality",
        metavar="WORD",
        help="for `folder` and `dicom`: the kind of pictures: chest, fundus or a word of your own; a training mix of "
        "several kinds is refused unless pretrain.accept_mixed_images is true. Default: the kind of earlier batches of "
        "the site",
    )
    command.add_argument(
        "--weight",
        type=float,
        metavar="W",
        help="how often each training image is shown per epoch; 0 for a batch that is only measured on; default: 1",
    )
    command.add_argument(
        "--normalize",
        choices=("shared", "own"),
        default="shared",
        help="the mean and std that training uses. shared: those of an earlier batch of the same source and site, so "
        "that a model has one normalisation for all of them; own: those of the batch's own images. Default: shared",
    )
    command.add_argument(
        "--splits",
        choices=("official", "hash"),
        default="official",
        help="official: the dataset's own splits if it has any; hash: each patient's split follows from a keyed hash. "
        "Default: official",
    )
    command.add_argument(
        "--select",
        action="append",
        metavar="KEY=VALUE",
        help="take only images that fulfil this rule: view=frontal, view=PA,AP, body_part=chest, label=Edema,Mass, "
        "age=18.. or sex=F. May be repeated; then every rule must hold. Images whose value is unknown are taken too, "
        "unless unknown=drop is given. Default: only frontal views, for public chest radiographs and for your own "
        "images if some are known to be frontal; view=any takes all views",
    )
    command.add_argument(
        "--sex", action="store_true", help="store the patients' sex in the shards; default: it is not stored"
    )
    command.add_argument(
        "--only",
        action="store_true",
        help="make this the project's only batch, and measure on it: all others are taken out of params.yaml and "
        "dvc.yaml, and their shards stay on the disk",
    )
    _add_project_options(command)
    command.set_defaults(run=register)

    command = commands.add_parser("remove", help="take a batch out of the project", description=remove.__doc__)
    command.add_argument("name", metavar="NAME", help="a key of `batches` in the params file, as phantom-b000")
    _add_project_options(command)
    command.set_defaults(run=remove)

    command = commands.add_parser(
        "keep", help="keep single images that the quality pass leaves out", description=keep.__doc__
    )
    command.add_argument("name", metavar="NAME", help="a key of `batches` in the params file, as clinic-b000")
    command.add_argument(
        "keys", nargs="*", metavar="KEY", help="keys of images; without any, the list is taken as you edited it"
    )
    _add_params_option(command)
    command.set_defaults(run=keep)

    command = commands.add_parser(
        "exclude",
        help="exclude single images or patients from everything that reads a batch",
        description=exclude.__doc__,
    )
    command.add_argument("name", metavar="NAME", help="a key of `batches` in the params file, as clinic-b000")
    command.add_argument(
        "keys", nargs="*", metavar="KEY", help="keys of images; without any, the list is taken as you edited it"
    )
    command.add_argument(
        "--patient",
        action="append",
        default=[],
        metavar="PSEUDONYM",
        help="pseudonym of a patient, all of whose images in the batch are excluded; may be repeated",
    )
    what = command.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print the list and change nothing")
    what.add_argument(
        "--undo",
        nargs="*",
        metavar="KEY",
        help="take these images, and the patients of --patient, off the list again",
    )
    _add_project_options(command)
    command.set_defaults(run=exclude)

    command = commands.add_parser(
        "settings", help="have batches built again with the params file's grid and shard", description=settings.__doc__
    )
    command.add_argument(
        "names", nargs="*", metavar="NAME", help="keys of `batches` in the params file; default: all batches"
    )
    _add_params_option(command)
    command.set_defaults(run=settings)

    command = commands.add_parser("relocate", help="say where a batch's images are now", description=relocate.__doc__)
    command.add_argument("name", metavar="NAME", help="a key of `batches` in the params file, as clinic-b000")
    command.add_argument("root", type=Path, metavar="FOLDER", help="folder of the images now")
    _add_params_option(command)
    command.set_defaults(run=relocate)

    add_sources_command(commands)
    add_look_commands(commands)
    key = commands.add_parser(
        "key", help="make an identity key, the secret behind patients' pseudonyms and splits"
    ).add_subparsers(required=True, metavar="COMMAND")
    command = key.add_parser("new", help="write a new key file", description=new_key.__doc__)
    command.add_argument(
        "path", type=Path, metavar="PATH", help="the new file, outside any git work tree, as ~/ace-id.key"
    )
    command.set_defaults(run=new_key)
    return parser


def _add_params_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="default: params.yaml"
    )


def _add_project_options(command: argparse.ArgumentParser) -> None:
    _add_params_option(command)
    command.add_argument("--dvc", type=Path, default=Path("dvc.yaml"), metavar="FILE", help="default: dvc.yaml")


if __name__ == "__main__":
    sys.exit(run_command(build_parser()))
