"""The whole service as it runs: folders are dropped, and a model is accepted, without a hand on the keyboard."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus

from ace.operations.publishing import PUBLISHED
from ace.operations.tags import read_events
from tests.ace.operations.delivered import deliver, deliveries_of, mixed
from tests.ace.operations.test_retraining_real import call
from tests.pipelines.clinic import FIRST, MIN_NEW, dagster_dev, environment, make_clinic
from tests.support.checkout import git
from tests.support.chromium import Page, chromium

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TIMEOUT_S = 1200
BAD, GOOD = "films of negatives", "films of ward 3"
PICTURES = "ACE_PICTURES"
"""Environment variable: folder that the pictures of docs/ are written to."""


@dataclass(frozen=True)
class Running:
    """The running service: its clone, the processes of Dagster, and their address."""

    root: Path
    dev: "subprocess.Popen[bytes]"
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_for(self, look: Callable[[], object]) -> None:
        """Wait until `look` finds something, as long as Dagster runs and nothing has failed."""
        end = time.monotonic() + TIMEOUT_S
        while not look():
            said = (self.root.parent / "dev.log").read_text()[-5000:]
            assert self.dev.poll() is None, said
            assert not [run for run in self.runs() if run.status == DagsterRunStatus.FAILURE], said
            assert time.monotonic() < end, said
            time.sleep(1)

    def runs(self) -> list[DagsterRun]:
        """All runs, the oldest first."""
        with DagsterInstance.get() as instance:
            return [*instance.get_runs()][::-1]

    def reasons(self) -> list[str]:
        """What the ticks of the schedule said that asked for no run, the oldest first."""
        with DagsterInstance.get() as instance:
            found = [state for state in instance.all_instigator_state() if state.name == "retraining"]
            ticks = [
                tick for state in found for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id)
            ]
        return [tick.skip_reason for tick in reversed(ticks) if tick.skip_reason]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service into whose folder two deliveries were dropped, once a model is accepted and nothing is due any more."""
    folder = tmp_path_factory.mktemp("clinic")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(folder).items():
            patch.setenv(name, value)
        root = make_clinic(folder)
        with dagster_dev(root, {}) as (dev, port):
            running = Running(root, dev, port)
            running.wait_for(lambda: running.reasons())
            assert running.reasons()[0].endswith("new images and no version is accepted yet")
            for name, seeds, is_negative in ((BAD, range(300, 330), True), (GOOD, range(100, 130), False)):
                dropped = deliver(folder / name, seeds, is_negative=is_negative)
                dropped.rename(root / "incoming" / name)
            running.wait_for(lambda: any("new images since v1" in reason for reason in running.reasons()))
            running.wait_for(lambda: all(run.is_finished for run in running.runs()))
            yield running


def test_the_good_delivery_is_accepted_and_the_other_one_refused(service: Running) -> None:
    found = {item.sent_as: item for item in deliveries_of(service.root).taken()}
    assert {name: item.state for name, item in found.items()} == {BAD: "refused", GOOD: "accepted"}
    assert mixed(service.root) == [FIRST, found[GOOD].name]
    assert not list((service.root / "incoming").iterdir())


def test_the_new_images_make_a_retraining_due_whose_model_serves(service: Running) -> None:
    events = read_events(service.root)
    kinds = ["delivery_refused", "delivery_accepted", "retraining_began", "registered", "promoted"]
    assert [event.kind for event in events] == [*kinds, "retraining_accepted"]
    assert all(event.automatic for event in events)
    served = Path(os.environ["ACE_MODELS"]) / "accepted"
    assert served.readlink() == Path("v1")
    encoded = service.root.parent / "encoded.parquet"
    images = service.root.parent / FIRST
    call(service.root, "ace", "embed", "--model", str(served), str(images), "--out", str(encoded))
    assert encoded.stat().st_size > 0


def test_afterwards_all_is_as_written_published_up_to_date_and_nothing_is_due(service: Running) -> None:
    assert {(run.job_name, run.status) for run in service.runs()} == {
        ("deliveries", DagsterRunStatus.SUCCESS),
        ("retrain", DagsterRunStatus.SUCCESS),
    }
    assert call(service.root, "ace", "models", "audit").startswith("OK")
    assert "Data and pipelines are up to date" in call(service.root, "dvc", "status")
    assert call(service.root, "ace", "retrain", "due").startswith(f"not due: 0 of {MIN_NEW} new images since v1")
    assert service.reasons()[-1].startswith(f"0 of {MIN_NEW} new images since v1")
    assert git(service.root, "status", "--porcelain") == ""
    head = git(service.root, "rev-parse", "HEAD")
    origin = service.root.parent / "origin.git"
    assert head == git(service.root, "rev-parse", PUBLISHED) == git(origin, "rev-parse", "service")


@pytest.fixture(scope="module")
def page(service: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("browser"), service.url) as page:
        yield page


def shown(page: Page, address: str, *texts: str, picture: str) -> str:
    """Open a page of Dagster, and return its text once it has all of these."""
    page.open(address, width=1200, height=760)
    end = time.monotonic() + 120
    while missing := [text for text in texts if text not in (found := str(page.script("document.body.innerText")))]:
        assert time.monotonic() < end, f"{address} does not show {missing}:\n{found}"
        time.sleep(0.5)
    page.settle()
    if folder := os.environ.get(PICTURES):
        page.screenshot(Path(folder) / picture)
    assert not [problem for problem in page.problems if problem.startswith("asked for")], "of another server"
    return found


@pytest.mark.browser
def test_the_graph_shows_how_the_model_comes_from_the_deliveries(service: Running, page: Page) -> None:
    batch = mixed(service.root)[-1]
    own = [f"{batch}.jsonl", batch, "ace", "cohort.json", "trained", "untrained", "properties.json", "gate.json"]
    address = f"{service.url}/assets/models/ace?view=lineage&lineageScope=neighbors&lineageDepth=5"
    text = shown(page, address, *own, "data", "model", "evidence", picture="dagster_graph.png")
    refused = next(item.name for item in deliveries_of(service.root).taken() if item.state == "refused")
    assert refused not in text


@pytest.mark.browser
def test_the_page_of_deliveries_shows_the_run_that_was_asked_for_and_names_no_folder(
    service: Running, page: Page
) -> None:
    address = f"{service.url}/locations/pipelines.definitions/jobs/deliveries/runs"
    text = shown(page, address, "deliveries", "incoming", "Success", picture="dagster_deliveries.png")
    assert BAD not in text
    assert GOOD not in text


@pytest.mark.browser
def test_the_page_of_a_run_shows_its_steps(service: Running, page: Page) -> None:
    run = next(run for run in service.runs() if run.job_name == "retrain")
    steps = [f'Finished execution of step "{name}"' for name in ("train", "publish")]
    shown(page, f"{service.url}/runs/{run.run_id}", *steps, "retraining", "Success", picture="dagster_run.png")
