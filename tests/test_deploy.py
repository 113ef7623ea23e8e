"""What deploy/ and docs/deploy.md hold is what systemd, Kubernetes, Slurm, Dagster and this project understand."""

import itertools
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
from dagster._cli import create_dagster_cli
from dagster._config import validate_config
from dagster._core.instance.config import dagster_instance_config_schema
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._daemon.cli import create_dagster_daemon_cli
from dagster_webserver.cli import create_dagster_webserver_cli
from ruamel.yaml import YAML

from ace.operations.params import OperationsParams
from tests.support.checkout import ROOT

DEPLOY, PAGE = ROOT / "deploy", ROOT / "docs/deploy.md"
UNITS = sorted(DEPLOY.glob("systemd/*.service"))
PROGRAMS = {
    "dagster": create_dagster_cli,
    "dagster-daemon": create_dagster_daemon_cli,
    "dagster-webserver": create_dagster_webserver_cli,
}
KUBERNETES = "1.33.0"
SBATCH = {
    *("begin", "chdir", "constraint", "cpus-per-gpu", "cpus-per-task", "dependency", "deadline", "error", "exclusive"),
    *(
        "export",
        "gpus",
        "gpus-per-node",
        "gpus-per-task",
        "gres",
        "hint",
        "input",
        "job-name",
        "mail-type",
        "mail-user",
    ),
    *("mem", "mem-per-cpu", "mem-per-gpu", "nice", "no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode"),
    *("output", "partition", "qos", "requeue", "reservation", "signal", "time", "time-min"),
}
"""Options of sbatch that a training may need, as Slurm 24.05 documents them."""
SLURM = {
    "SLURM_CPUS_PER_TASK",
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_LOCALID",
    "SLURM_NTASKS",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_PROCID",
    "SLURM_SUBMIT_DIR",
    "SRUN_CPUS_PER_TASK",
}
"""Variables of a job that deploy/ may go by, as Slurm 24.05 documents them."""
GIVEN = {"DAGSTER_PG_PASSWORD"}
"""Variables that a file of docs/deploy.md itself reads."""
SHELL = {"PATH", "HOME", "PIPESTATUS"}
TORCH = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
REAL_SECRET = re.compile(r"hooks\.slack\.com|https?://(?!127\.0\.0\.1|localhost)\S*(hc-ping|webhook)|-----BEGIN")


def section(unit: Path, name: str) -> list[tuple[str, str]]:
    """Key and value of each line of a section of a unit."""
    text = unit.read_text().partition(f"[{name}]\n")[2].partition("\n[")[0]
    pairs = [line.partition("=") for line in text.splitlines() if line and not line.startswith("#")]
    return [(key, value) for key, _, value in pairs]


def service(unit: Path) -> dict[str, str]:
    return dict(section(unit, "Service"))


def documents() -> list[dict[str, Any]]:
    # Not YAML 1.2 alone: kubectl reads 1.1, and here both read the same.
    read = [
        [*YAML(typ="safe", pure=True).load_all(DEPLOY / "kubernetes/ace.yaml")],
        [*_yaml11().load_all(DEPLOY / "kubernetes/ace.yaml")],
    ]
    assert read[0] == read[1]
    return read[0]


def _yaml11() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 1)
    return yaml


def pod() -> dict[str, Any]:
    (found,) = [item["spec"]["template"]["spec"] for item in documents() if item["kind"] == "Deployment"]
    return found


def commands() -> Iterator[tuple[str, list[str]]]:
    """Where a program is started, and its words."""
    for unit in UNITS:
        yield unit.name, service(unit)["ExecStart"].split()
    for container in pod()["containers"]:
        yield container["name"], container["command"]
        for probe in ("startupProbe", "livenessProbe"):
            yield f"{container['name']}.{probe}", container[probe]["exec"]["command"]
    text = PAGE.read_text()
    lines = [line.partition("#")[0].split("&&") for line in re.findall(r"^    +(\S.*)$", text, re.M)]
    spans = re.findall(r"`(python -m [^`…]+)`", text)
    for command in [*itertools.chain(*lines), *spans]:
        words = shlex.split(command)
        if words[:3] in (["python", "-m", "ace"], ["python", "-m", "shards"]):
            yield "deploy.md", words


def parse(words: Sequence[str]) -> None:
    """Let the program's own parser read its words, without doing anything."""
    name = Path(words[0]).name
    if name == "python":
        if words[1:3] == ["-m", "ace"]:
            from ace.__main__ import build_parser

            build_parser().parse_args(words[3:])
        elif words[1:3] == ["-m", "shards"]:
            from shards.__main__ import build_parser as build_parser_of_shards

            build_parser_of_shards().parse_args(words[3:])
        else:
            assert words[1] == "-c"
            compile(words[2], "probe", "exec")
        return
    command: click.Command = PROGRAMS[name]()
    rest = list(words[1:])
    while isinstance(command, click.Group) and not command.invoke_without_command:
        context = click.Context(command)
        found = command.get_command(context, rest.pop(0))
        assert found is not None, words
        command = found
    command.make_context(name, rest)


@pytest.mark.parametrize(("where", "words"), [*commands()], ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_is_one_that_its_program_takes(where: str, words: list[str]) -> None:
    parse(words)


def test_a_command_with_an_option_that_is_not_there_is_found() -> None:
    with pytest.raises(click.NoSuchOption):
        parse(["dagster-webserver", "--no-such-option"])


def test_all_find_the_code_server_where_it_listens() -> None:
    (origin,) = WorkspaceFileTarget([str(DEPLOY / "workspace.yaml")]).create_origins()
    servers = [words for _, words in commands() if "code-server" in words]
    assert len(servers) == 2
    for words in servers:
        options = dict(zip(words[3::2], words[4::2], strict=True))
        assert (options["--host"], int(options["--port"])) == (origin.host, origin.port)
        assert options["--location-name"] == origin.location_name
        assert options["--module-name"] == "pipelines.definitions"
    for words in (words for _, words in commands() if "--workspace" in words):
        assert (ROOT / words[words.index("--workspace") + 1]).is_file()


def test_every_port_is_of_the_machine_itself() -> None:
    for where, words in commands():
        if "--port" in words and "grpc-health-check" not in words:
            assert words[words.index("--host") + 1] == "127.0.0.1", where


def port_of(unit: str) -> str:
    words = service(DEPLOY / f"systemd/{unit}.service")["ExecStart"].split()
    return words[words.index("--port") + 1]


def test_the_page_names_the_ports_at_which_the_servers_listen() -> None:
    text = PAGE.read_text()
    assert re.findall(r"proxy_pass http://([\d.:]+);", text) == [f"127.0.0.1:{port_of('ace-view')}"]
    (webserver,) = [found["command"] for found in pod()["containers"] if found["name"] == "webserver"]
    port = webserver[webserver.index("--port") + 1]
    assert port == port_of("ace-webserver")
    assert re.findall(r"port-forward deployment/ace (\d+)", text) == [port]
    assert re.findall(r"ssh -L (\d+):127\.0\.0\.1:(\d+)", text) == [(port, port)]
    for unit in ("ace-webserver", "ace-view"):
        assert f"`{unit}` at port {port_of(unit)}" in text
    (probe,) = set(re.findall(r"http://[\d.]+:(\d+)/server_info", (DEPLOY / "kubernetes/ace.yaml").read_text()))
    assert probe == port


def test_every_folder_of_the_service_is_made_by_the_page() -> None:
    lines = re.findall(r"^    sudo (?:install -d|-u ace git clone) .*", PAGE.read_text(), re.M)
    made = {word for line in lines for word in line.partition("#")[0].split() if word.startswith("/srv/ace")}
    named = set(re.findall(r"/srv/ace[\w/.-]*", (DEPLOY / "systemd/service.env").read_text()))
    for unit in UNITS:
        named |= set(re.findall(r"/srv/ace[\w/.-]*", unit.read_text()))
    for path in named:
        folder = "/".join(path.split("/")[:4])  # what lies in the clone comes with it
        assert folder in made, path


def test_whoever_is_to_look_alone_changes_nothing() -> None:
    (unit,) = [unit for unit in UNITS if unit.stem == "ace-view"]
    assert "--read-only" in service(unit)["ExecStart"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_every_line(tmp_path: Path) -> None:
    """The programs are those of this environment: systemd looks whether they are there."""
    for unit in UNITS:
        text = unit.read_text().replace("/srv/ace/clone/.venv", sys.prefix)
        (tmp_path / unit.name).write_text(text.replace("/srv/ace", str(tmp_path)))
    command = ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.glob("*.service")))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_units_are_no_root_are_hardened_and_their_secrets_come_from_a_file_of_root() -> None:
    assert [unit.stem for unit in UNITS] == ["ace-code", "ace-daemon", "ace-view", "ace-webserver"]
    for unit in UNITS:
        found = service(unit)
        assert found["User"] == "ace"
        assert found["EnvironmentFile"] == "/etc/ace/service.env"
        assert "Environment" not in found
        assert (found["NoNewPrivileges"], found["ProtectSystem"], found["ReadWritePaths"]) == (
            "yes",
            "strict",
            "/srv/ace",
        )
        assert found["Restart"] == "always"
    code = service(DEPLOY / "systemd/ace-code.service")
    # ProtectClock and PrivateDevices shut a GPU out.
    assert not {"PrivateDevices", "ProtectClock", "DevicePolicy"} & set(code)
    # Without it gloo and NCCL find no network interface, and no training of several processes begins.
    assert "AF_NETLINK" in code["RestrictAddressFamilies"].split()


def test_what_runs_is_given_more_time_to_end_than_its_supervisor_takes() -> None:
    from pipelines.process import KILL_S, TERMINATION_GRACE_S

    found = service(DEPLOY / "systemd/ace-code.service")
    assert found["KillMode"] == "control-group"  # each process hears of it: a training saves
    assert int(found["TimeoutStopSec"]) > 2 * (TERMINATION_GRACE_S + KILL_S)
    assert pod()["terminationGracePeriodSeconds"] > 2 * (TERMINATION_GRACE_S + KILL_S)


@pytest.mark.parametrize("document", documents(), ids=lambda document: document["kind"])
def test_kubernetes_takes_every_field(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_a_field_that_kubernetes_does_not_have_is_found() -> None:
    (found,) = [item for item in documents() if item["kind"] == "Deployment"]
    found["spec"]["template"]["spec"]["containers"][0]["comand"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found, KUBERNETES, strict=True)


def test_there_is_one_writer_and_never_two() -> None:
    (found,) = [item["spec"] for item in documents() if item["kind"] == "Deployment"]
    assert (found["replicas"], found["strategy"]) == (1, {"type": "Recreate"})
    (claim,) = [item for item in documents() if item["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    assert {"persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}, "name": "ace"} in pod()["volumes"]


def test_containers_are_no_root_have_probes_and_mount_what_is_there() -> None:
    spec = pod()
    assert spec["securityContext"]["runAsNonRoot"]
    assert not spec["automountServiceAccountToken"]
    volumes = {volume["name"] for volume in spec["volumes"]}
    for container in spec["containers"]:
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert {"startupProbe", "livenessProbe"} <= container.keys()
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        written = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
        for entry in container["env"]:
            if entry["name"].startswith("ACE_") and "valueFrom" in entry:
                assert entry["valueFrom"]["secretKeyRef"]["name"] == "ace"
            elif entry.get("value", "").startswith("/srv"):
                assert any(entry["value"].startswith(path) for path in written)


def test_bash_takes_every_line_of_the_job() -> None:
    for path in DEPLOY.glob("slurm/*"):
        subprocess.run(["bash", "-n", str(path)], check=True)
        assert path.stat().st_mode & stat.S_IXUSR


def test_every_option_of_the_job_is_one_of_slurms() -> None:
    lines = re.findall(r"^#SBATCH (.*)$", (DEPLOY / "slurm/pretrain.sbatch").read_text(), re.M)
    found = [re.fullmatch(r"--([a-z-]+)(=\S+)?", line) for line in lines]
    assert len(found) > 5
    assert {match and match[1] for match in found} <= SBATCH
    for program in re.findall(r"deploy/slurm/\w+\.sh", (DEPLOY / "slurm/pretrain.sbatch").read_text()):
        assert (ROOT / program).is_file()


def variables() -> set[str]:
    """Names of all environment variables that a file of deploy/ sets or reads, or that docs/deploy.md has."""
    found = {entry["name"] for container in pod()["containers"] for entry in container["env"]}
    found |= set(re.findall(r"^#?([A-Z_]+)=", (DEPLOY / "systemd/service.env").read_text(), re.M))
    for path in DEPLOY.glob("slurm/*"):
        found |= set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b|\bRANK\b", path.read_text()))
    found |= set(re.findall(r"\b(?:ACE|DAGSTER|DVC)(?:_[A-Z]+)+\b", PAGE.read_text()))
    return found


def test_every_variable_is_one_that_somebody_reads() -> None:
    import dagster
    import dvc

    own = "".join(path.read_text() for name in ("ace", "shards", "pipelines") for path in (ROOT / name).rglob("*.py"))
    for name in sorted(variables() - SHELL - SLURM - TORCH - GIVEN):
        if name.startswith("ACE_"):
            assert f'"{name}"' in own, name
        else:
            package = {"DAGSTER": dagster, "DVC": dvc}[name.partition("_")[0]]
            sources = Path(str(package.__file__)).parent.rglob("*.py")
            assert any(name in path.read_text() for path in sources), name


def test_both_ways_set_the_same_variables() -> None:
    systemd = set(re.findall(r"^#?([A-Z_]+)=", (DEPLOY / "systemd/service.env").read_text(), re.M))
    for container in pod()["containers"]:
        names = {entry["name"] for entry in container["env"]}
        assert systemd - names == {"PATH", "ACE_LAUNCHER"}
        assert names <= systemd


def test_no_file_has_a_secret() -> None:
    for path in [*DEPLOY.rglob("*"), PAGE]:
        if path.is_file():
            assert not REAL_SECRET.search(path.read_text()), path
    given = re.findall(r"^(ACE_(?:ALERT|SMTP|PING)\w+)=", (DEPLOY / "systemd/service.env").read_text(), re.M)
    assert given == []


def blocks(language: str) -> list[str]:
    """The fenced blocks of docs/deploy.md in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.M | re.S)


def test_dagster_takes_the_storage_in_postgres() -> None:
    (text,) = [block for block in blocks("yaml") if "postgres" in block]
    config = YAML(typ="safe").load((ROOT / "pipelines/dagster.yaml").read_text()) | YAML(typ="safe").load(text)
    assert validate_config(dagster_instance_config_schema(), config).success
    assert {config["storage"]["postgres"]["postgres_db"]["password"]["env"]} == GIVEN
    assert not validate_config(dagster_instance_config_schema(), {**config, "storage": {"postgres": {"x": 1}}}).success


def test_the_sections_of_operations_in_the_documents_are_valid() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    found = re.findall(r"^    operations:\n(?:      .*\n)+", text, re.M)
    assert len(found) > 2
    for block in found:
        if "…" not in block:
            OperationsParams.from_params(YAML(typ="safe").load(block)["operations"], "docs/operations.md")
