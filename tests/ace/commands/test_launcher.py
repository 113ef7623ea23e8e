"""`$ACE_LAUNCHER` starts the processes of a training whose command stays the same."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from ace.commands.launcher import LAUNCHER, launched
from shards.core.errors import ConfigError
from tests.ace.operations.service import init_clone
from tests.ace.pretrain.conftest import tiny_grid, tiny_mix, tiny_params
from tests.ace.pretrain.runs import assert_equal_to_the_bit, finish, free_port, start_run
from tests.support.checkout import ROOT, git

COMMAND = ["/bin/python", "-m", "ace", "pretrain", "--run", "runs/a"]
SRUN = """#!/bin/bash
# Two tasks of a job, as srun starts them: it gives the greatest of their exit codes, and USR1 when the time is up.
while [ "${1#-}" != "$1" ]; do shift; done
[ "$SRUN_CPUS_PER_TASK" = 3 ] || exit 9
export SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks+=($!)
done
while [ -e "$SLURM_SUBMIT_DIR/is-short" ] && kill -0 "${tasks[@]}"; do
  if find "$ACE_SCRATCH" -name 'step-*.pt' 2>/dev/null | grep -q .; then
    rm "$SLURM_SUBMIT_DIR/is-short"
    kill -USR1 "${tasks[@]}"
  fi
  sleep 0.1
done
greatest=0
for task in "${tasks[@]}"; do
  wait "$task"; code=$?
  greatest=$((code > greatest ? code : greatest))
done
exit $greatest
"""
SCONTROL = """#!/bin/sh
echo "$@" >> "$SLURM_SUBMIT_DIR/scontrol.log"
echo 127.0.0.1
"""
DVC = """
stages:
  pretrain:
    cmd: python -m ace pretrain --shards {shards}
    deps: [params.yaml]
    outs: [models/ace]
    metrics: [metrics/pretrain: {{cache: false}}]
"""


@pytest.mark.parametrize(
    ("launcher", "expected"),
    [
        ("", []),
        ("srun --wait=600 deploy/slurm/rank.sh", ["srun", "--wait=600", "deploy/slurm/rank.sh", *COMMAND]),
        ("env 'A=a b'", ["env", "A=a b", *COMMAND]),
        ("torchrun --nproc-per-node 2", ["torchrun", "--nproc-per-node", "2", "--no-python", "--", *COMMAND]),
        (
            "srun /opt/bin/torchrun --nnodes 2",
            ["srun", "/opt/bin/torchrun", "--nnodes", "2", "--no-python", "--", *COMMAND],
        ),
        (
            "python -m torch.distributed.run",
            ["python", "-m", "torch.distributed.run", "--no-python", "--", *COMMAND],
        ),
    ],
)
def test_the_command_stands_behind_the_launcher(launcher: str, expected: list[str]) -> None:
    assert launched({LAUNCHER: launcher}, COMMAND) == expected


def test_a_process_that_was_started_with_others_starts_none() -> None:
    assert launched({LAUNCHER: "torchrun --nproc-per-node 2", "WORLD_SIZE": "2"}, COMMAND) == []
    assert launched({}, COMMAND) == []


def test_a_launcher_with_half_a_quote_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ACE_LAUNCHER: No closing quotation; expected a command"):
        launched({LAUNCHER: "srun 'a"}, COMMAND)


@pytest.mark.parametrize("words", [["pretrain"], ["variant", "longer"]])
def test_a_launcher_that_is_not_there_is_named(words: list[str], tmp_path: Path) -> None:
    done = give(tmp_path, words, {LAUNCHER: "no-such-launcher -n 2"})
    assert (done.returncode, done.stderr) == (
        2,
        "error: ACE_LAUNCHER: no-such-launcher cannot be started: No such file or directory\n",
    )


def test_a_launcher_that_is_no_program_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes").touch()
    done = give(tmp_path, ["pretrain"], {LAUNCHER: f"{tmp_path}/notes"})
    assert (done.returncode, done.stderr) == (
        2,
        f"error: ACE_LAUNCHER: {tmp_path}/notes cannot be started: Permission denied\n",
    )


def test_help_and_wrong_options_start_no_launcher(tmp_path: Path) -> None:
    said = give(tmp_path, ["pretrain", "--help"], {LAUNCHER: "no-such-launcher"})
    assert (said.returncode, said.stdout[:6]) == (0, "usage:")
    assert give(tmp_path, ["pretrain", "--no-such-option"], {LAUNCHER: "touch started"}).returncode == 2
    assert not (tmp_path / "started").exists()


def test_the_exit_code_and_the_signals_are_the_launchers(tmp_path: Path) -> None:
    (tmp_path / "say").write_text("#!/bin/sh\ntrap 'exit 75' TERM\necho begun\nwhile :; do sleep 0.1; done\n")
    (tmp_path / "say").chmod(0o755)
    command = [sys.executable, "-m", "ace", "pretrain"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), LAUNCHER: f"{tmp_path}/say"}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.terminate()
        assert process.wait(timeout=60) == 75


@pytest.mark.parametrize("words", [["pretrain"], ["variant", "longer"]])
def test_the_launcher_gets_the_whole_command_and_its_processes_no_launcher(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "say").write_text('#!/bin/sh\necho "launcher=$ACE_LAUNCHER" "$@"\n')
    (tmp_path / "say").chmod(0o755)
    done = give(tmp_path, [*words, "--run", "a b"], {LAUNCHER: f"{tmp_path}/say hello"})
    assert done.stdout == f"launcher= hello {sys.executable} -m ace {' '.join(words)} --run a b\n"


def give(folder: Path, words: list[str], environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ace", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def write_params(folder: Path, **changes: Any) -> None:
    sections = {
        "grid": tiny_grid().model_dump(mode="json", by_alias=True),
        "mix": {name: item.model_dump(mode="json", by_alias=True) for name, item in tiny_mix().items()},
        "pretrain": tiny_params(**changes).model_dump(mode="json", by_alias=True),
    }
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(sections, file)


@pytest.mark.slow
def test_torchrun_trains_with_two_processes_as_two_that_are_started_by_hand(noise_shards: Path, tmp_path: Path) -> None:
    write_params(tmp_path, epochs=2)
    here = {
        LAUNCHER: f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2",
        "ACE_SCRATCH": str(tmp_path / "scratch"),
        "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    words = ["pretrain", "--shards", str(noise_shards), "--out", "model", "--metrics", "metrics", "--run", "run"]
    done = give(tmp_path, words, here)
    assert done.returncode == 0, done.stderr
    assert "by 2 process(es)" in done.stdout + done.stderr
    by_hand = tmp_path / "by-hand"
    by_hand.mkdir()
    finish(start_run(noise_shards, by_hand, num_ranks=2, epochs=2))
    assert_equal_to_the_bit(tmp_path / "model", by_hand / "model")


@pytest.mark.slow
def test_a_request_to_end_reaches_every_process_that_torchrun_started(noise_shards: Path, tmp_path: Path) -> None:
    write_params(tmp_path, epochs=500)
    words = ["pretrain", "--shards", str(noise_shards), "--out", "model", "--metrics", "metrics", "--run", "run"]
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        LAUNCHER: f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2",
        "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "ace", *words]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log) as process,
    ):
        give_up_at = time.monotonic() + 240
        while not [*tmp_path.glob("run/checkpoints/step-*.pt")]:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < give_up_at
            time.sleep(0.1)
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.wait(timeout=120) != 0
        _, alive = psutil.wait_procs(started, timeout=30)
    assert len(started) >= 2
    assert alive == []
    assert not (tmp_path / "model").exists()
    assert "saved after step" in (tmp_path / "log").read_text()


@pytest.fixture
def job(noise_shards: Path, tmp_path: Path) -> Path:
    """A clone with the job's files, and a Slurm that starts two tasks on this machine."""
    clone = tmp_path / "clone"
    (clone / "deploy").mkdir(parents=True)
    shutil.copytree(ROOT / "deploy/slurm", clone / "deploy/slurm")
    write_params(clone, epochs=20)
    (clone / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (clone / "bin" / name).write_text(text)
        (clone / "bin" / name).chmod(0o755)
    (clone / ".venv").symlink_to(sys.prefix)
    init_clone(clone)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=clone, check=True)
    git(clone, "add", "params.yaml")
    git(clone, "commit", "--quiet", "-m", "a project")
    return clone


def submit(clone: Path, shards: Path) -> "subprocess.CompletedProcess[str]":
    (clone / "dvc.yaml").write_text(DVC.format(shards=shards))
    environment = {
        **os.environ,
        "PATH": f"{clone / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "ACE_SCRATCH": str(clone.parent / "scratch"),
        "CUDA_VISIBLE_DEVICES": "",
        "DVC_SITE_CACHE_DIR": str(clone.parent / "site-cache"),
        "GLOO_SOCKET_IFNAME": "lo",
        "SLURM_SUBMIT_DIR": str(clone),
        "SLURM_JOB_ID": str(free_port() % 20000),
        "SLURM_JOB_NODELIST": "here",
        "SLURM_CPUS_PER_TASK": "3",
    }
    command = ["bash", "deploy/slurm/pretrain.sbatch"]
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_job_of_slurm_whose_time_is_up_goes_on_in_the_next_one(job: Path, noise_shards: Path) -> None:
    (job / "is-short").touch()
    done = submit(job, noise_shards)
    assert done.returncode != 0
    assert "exited with 75" in done.stdout, done.stdout
    assert "requeue" in (job / "scontrol.log").read_text()
    (job / "scontrol.log").unlink()
    done = submit(job, noise_shards)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "by 2 process(es)" in done.stdout
    assert "requeue" not in (job / "scontrol.log").read_text()
    lock = YAML(typ="safe").load(job / "dvc.lock")["stages"]["pretrain"]
    assert lock["cmd"] == f"python -m ace pretrain --shards {noise_shards}"
    assert "srun" not in json.dumps(lock)


@pytest.mark.slow
def test_a_job_of_slurm_that_fails_is_not_begun_again(job: Path, tmp_path: Path) -> None:
    done = submit(job, tmp_path / "no-shards")
    assert done.returncode != 0
    assert "requeue" not in (job / "scontrol.log").read_text()
