"""Several processes for a training whose command stays the same: `$ACE_LAUNCHER` starts them."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LAUNCHER = "ACE_LAUNCHER"
_TORCHRUN = ("torchrun", "torch.distributed.run")


def launch() -> None:
    """Become `$ACE_LAUNCHER` with this command behind it, once; return where there is no launcher, or it was used.

    What dvc.lock records of a training, its command among it, does not tell by how many processes it was made.

    Raises:
        ConfigError: there is no such program.
    """
    from shards.core.errors import ConfigError

    command = launched(os.environ, [sys.executable, *sys.orig_argv[1:]])
    if not command:
        return
    # The processes that it starts do not start others.
    environment = {name: value for name, value in os.environ.items() if name != LAUNCHER}
    sys.stdout.flush()
    try:
        os.execvpe(command[0], command, environment)
    except OSError as error:
        raise ConfigError(f"{LAUNCHER}: {command[0]} cannot be started: {error.strerror}") from None


def launched(environment: Mapping[str, str], command: Sequence[str]) -> list[str]:
    """Return what starts a command by the launcher; nothing where there is none, or it has started this process.

    Args:
        environment: The environment variables.
        command: The program and its arguments.

    Raises:
        ConfigError: the launcher's quotes do not match.
    """
    from shards.core.errors import ConfigError

    if "WORLD_SIZE" in environment:
        return []
    try:
        launcher = shlex.split(environment.get(LAUNCHER, ""))
    except ValueError as error:
        raise ConfigError(f"{LAUNCHER}: {error}; expected a command, as torchrun --nproc-per-node 2") from None
    if not launcher:
        return []
    # torchrun expects a script of Python, and takes what comes before `--` for its own options.
    own = ["--no-python", "--"] if any(Path(word).name in _TORCHRUN for word in launcher) else []
    return [*launcher, *own, *command]
