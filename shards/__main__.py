"""`python -m shards`: datasets in, shards out: register, build, verify, look; the phantom; the identity key."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from shards.checking.commands import add_look_commands
from shards.cli import add_params_options, batch_of, count, run_command, values_of
from shards.sources.catalogue import add_sources_command


def phantom(arguments: argparse.Namespace) -> None:
    """Render the built-in dataset."""
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
    """Build the shards of one batch. Finished tars are kept: after a kill or a full disk the same command goes on, and
    leaves the same bytes."""
    from shards.build.stage import build_shards
    from shards.delivery.published_key import warn_of_published_key
    from shards.params import RegisteredSourceParams
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
    """Add a dataset or a folder of images as a new batch: a manifest of its files in data/manifests, the file
    batches/NAME.yaml that decides its shards, an item of `batches` and `mix` in the params file, a line in dvc.yaml. A
    folder that has grown is added again under the next name; what its other batches have is left out, and their
    patients keep their splits. With --only the project has no batch beside the new one."""
    from shards.delivery.project import Project
    from shards.delivery.register import check_paths_fit, register_batch
    from shards.delivery.selection import parse_select
    from shards.errors import ConfigError
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
        raise ConfigError(f"--labels belongs to --source folder or dicom; {arguments.source} brings its own labels")
    elif arguments.patient_from is not None:
        raise ConfigError(
            f"--patient-from belongs to --source folder or dicom; {arguments.source} names its own patients"
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
    Its file, images, manifest and shards stay on the disk; registering it again brings it back."""
    from shards.delivery.project import Project, remove_batch

    remove_batch(arguments.name, Project(arguments.params, arguments.dvc))


def keep(arguments: argparse.Namespace) -> None:
    """Keep single images in a batch's shards although the quality pass would leave them out. Their keys stand in
    quality.parquet and quality.png of the shards, and in data/manifests/NAME.quarantine.csv; the list of kept ones is
    data/manifests/NAME.keep.txt, a key a line. After editing it, give the command without keys."""
    from shards.delivery.project import Project, keep_images

    keep_images(arguments.name, arguments.keys, Project(arguments.params))


def exclude(arguments: argparse.Namespace) -> None:
    """Exclude images of a batch from training, evaluation, embedding and the report; its shards stay as they are. Keys
    are those of `show`, `verify` and quality.parquet. The list is data/manifests/NAME.exclude.txt, a line an image, or
    `patient` and the key of a patient; after editing it, give the command without keys."""
    from shards.checking.exclude import exclude_images
    from shards.delivery.exclusion import list_path, read_exclusion
    from shards.delivery.project import Project

    project = Project(arguments.params, arguments.dvc)
    if arguments.list:
        excluded = read_exclusion(arguments.name, project.root)
        text = list_path(arguments.name, project.root).read_text(encoding="utf-8") if excluded else ""
        print(text or f"no image of {arguments.name} is excluded")
    else:
        keys = [*arguments.keys, *(arguments.undo or ())]
        exclude_images(arguments.name, keys, arguments.patient, project, undo=arguments.undo is not None)


def settings(arguments: argparse.Namespace) -> None:
    """Give batches the sections `grid` and `shard` that the params file has now; the next `dvc repro` builds their
    shards again with them. Each batch has its own copy in batches/NAME.yaml, from when it was registered, so that
    another value in the params file builds nothing again by itself."""
    from shards.delivery.project import Project, apply_settings

    apply_settings(arguments.names, Project(arguments.params))


def relocate(arguments: argparse.Namespace) -> None:
    """Say where a batch's images are now, after their folder was moved. Nothing is built or trained again: a batch is
    what its manifest says, wherever its files lie."""
    from shards.delivery.project import Project, relocate_batch

    relocate_batch(arguments.name, arguments.root, Project(arguments.params))


def new_key(arguments: argparse.Namespace) -> None:
    """Write a new secret identity key."""
    from shards.identity import KEY_FILE_VARIABLE, create_key

    fingerprint = create_key(arguments.path)
    print(f"wrote {arguments.path}, readable by you alone; keep it out of git and DVC, and keep a copy safe")
    print(f"now: export {KEY_FILE_VARIABLE}={arguments.path}")
    print(f"`register` enters its fingerprint, {fingerprint}, in batches/NAME.yaml")


_EPILOG = """from images to shards:
  python -m shards sources                            what there is, and what to put where
  python -m shards key new ~/ace-id.key               once; export ACE_ID_KEY_FILE=~/ace-id.key
  python -m shards register NAME FOLDER --source KIND
  python -m shards build --batch NAME                 what `dvc repro` runs
  python -m shards verify data/shards/NAME            then stats, show
  python -m shards gallery --batch NAME --out FILE.html
  python -m shards keep NAME KEY …                    images that the quality pass left out by mistake
  python -m shards exclude NAME KEY …                 images that nothing shall read any more
  python -m shards relocate NAME FOLDER               its images were moved
  python -m shards remove NAME                        the project without this batch
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
    command.add_argument("--out", type=Path, default=Path("data/phantom"), metavar="DIR")
    command.add_argument("--num-patients", type=int, metavar="N", help="these four: default as in the params file")
    command.add_argument("--images-per-patient", type=int, metavar="M", help="at most M images of each patient")
    command.add_argument("--size", type=int, metavar="PX", help="height and width of an image, up to 1024")
    command.add_argument("--seed", type=int, metavar="S")
    command.add_argument("--num-workers", type=count, metavar="N", help="processes; default: one a core")
    command.set_defaults(run=phantom)

    command = commands.add_parser(
        "shard", aliases=["build"], help="build the shards of one batch", description=shard.__doc__
    )
    add_params_options(command)
    command.add_argument("--batch", required=True, metavar="NAME", help="a key of `batches` in the params file")
    command.add_argument("--out", type=Path, metavar="DIR", help="default: data/shards/NAME")
    where = command.add_mutually_exclusive_group()
    where.add_argument("--num-workers", type=count, metavar="N", help="processes; default: one a core")
    where.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="build on a Ray cluster (ray://HOST:10001, auto, or local) whose nodes see the same files and folders, "
        "ACE_SCRATCH among them",
    )
    command.set_defaults(run=shard)

    command = commands.add_parser("register", help="add a dataset or your own images", description=register.__doc__)
    command.add_argument("name", help="name of the new batch, as clinic-b000; a batch never changes")
    command.add_argument("root", type=Path, help="its folder; the files stay where they are")
    command.add_argument(
        "--source",
        default="folder",
        metavar="KIND",
        help="what the folder holds: `python -m shards sources` lists the kinds; default: folder, any images",
    )
    command.add_argument(
        "--labels",
        type=Path,
        metavar="CSV",
        help="for `folder`: column path, optional patient, study, view, split, sex, age_years, labels (1, 0, -1, "
        "empty), masks (mask:NAME), boxes and landmarks (box:LABEL, landmark:NAME, height, width), images without a "
        "row are left out; for `dicom`: column sop_uid, and labels",
    )
    command.add_argument(
        "--patient-from",
        metavar="REGEX",
        help="for `folder` and `dicom`: a regular expression that finds the patient in each image's path below the "
        "folder: its first group, or all that it finds. Default: the CSV's column patient, or the Patient ID; a folder "
        "without either is split image by image",
    )
    command.add_argument(
        "--site",
        metavar="NAME",
        help="for `folder` and `dicom`: who gave the patients their ids; patients of one id are one person within a "
        "site, and other people in another. Default: that of earlier batches of the folder or name, or else the "
        "batch's name without its number",
    )
    command.add_argument(
        "--modality",
        metavar="WORD",
        help="for `folder` and `dicom`: what the pictures are, as chest, fundus or a word of your own; a training mix "
        "of several kinds is refused unless pretrain.accept_mixed_images is true. Default: that of earlier batches of "
        "the site",
    )
    command.add_argument(
        "--weight",
        type=float,
        metavar="W",
        help="share in training; 0: none, a set to measure on; default: 1, each image once an epoch",
    )
    command.add_argument(
        "--normalize",
        choices=("shared", "own"),
        default="shared",
        help="mean and std in training: shared: those of an earlier batch of the same source and site, so that a model "
        "has one for all of them; own: those of the batch's own images; default: shared",
    )
    command.add_argument(
        "--splits",
        choices=("official", "hash"),
        default="official",
        help="official: the dataset's own splits where it has them; hash: all patients by their keyed hash",
    )
    command.add_argument(
        "--select",
        action="append",
        metavar="KEY=VALUE",
        help="take these images of the folder alone, as view=frontal, view=PA,AP, body_part=chest, label=Edema,Mass, "
        "age=18.., sex=F; several: each must hold; images of which the value is unknown stay unless unknown=drop. "
        "Default: frontal views alone of public chest radiographs, and of your own images where some are known to be "
        "frontal; view=any takes all views",
    )
    command.add_argument("--sex", action="store_true", help="let the shards say the sex; default: they do not")
    command.add_argument(
        "--only",
        action="store_true",
        help="make it the project's only batch: take all others out of params.yaml and dvc.yaml (their shards stay on "
        "the disk) and measure on it",
    )
    _add_project_options(command)
    command.set_defaults(run=register)

    command = commands.add_parser("remove", help="take a batch out of the project", description=remove.__doc__)
    command.add_argument("name", help="a key of `batches` in the params file, as phantom-b000")
    _add_project_options(command)
    command.set_defaults(run=remove)

    command = commands.add_parser(
        "keep", help="keep single images that the quality pass leaves out", description=keep.__doc__
    )
    command.add_argument("name", metavar="NAME", help="a key of `batches` in the params file, as clinic-b000")
    command.add_argument("keys", nargs="*", metavar="KEY", help="of an image; none: take the list as it was edited")
    _add_params_option(command)
    command.set_defaults(run=keep)

    command = commands.add_parser(
        "exclude", help="exclude single images or a patient from all that reads a batch", description=exclude.__doc__
    )
    command.add_argument("name", metavar="NAME", help="a key of `batches` in the params file, as clinic-b000")
    command.add_argument("keys", nargs="*", metavar="KEY", help="of an image; none: take the list as it was edited")
    command.add_argument(
        "--patient", action="append", default=[], metavar="KEY", help="of a patient, all of whose images are meant"
    )
    what = command.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print the list and change nothing")
    what.add_argument(
        "--undo", nargs="*", metavar="KEY", help="take these, and those of --patient, off the list: they are read again"
    )
    _add_project_options(command)
    command.set_defaults(run=exclude)

    command = commands.add_parser(
        "settings", help="build batches again with the params file's grid and shard", description=settings.__doc__
    )
    command.add_argument("names", nargs="*", metavar="NAME", help="a key of `batches` in the params file; none: all")
    _add_params_option(command)
    command.set_defaults(run=settings)

    command = commands.add_parser("relocate", help="say where a batch's images are now", description=relocate.__doc__)
    command.add_argument("name", metavar="NAME", help="a key of `batches` in the params file, as clinic-b000")
    command.add_argument("root", type=Path, metavar="FOLDER", help="where the images are")
    _add_params_option(command)
    command.set_defaults(run=relocate)

    add_sources_command(commands)
    add_look_commands(commands)
    key = commands.add_parser("key", help="the secret behind patient pseudonyms and splits").add_subparsers(
        required=True
    )
    command = key.add_parser("new", help="write a new key file", description=new_key.__doc__)
    command.add_argument("path", type=Path)
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
