"""The pages as a user meets them: Airflow's own login, real runs, Chromium."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.auth_manager import PRIVATE_DAG
from tests.plugins.chromium import chromium, resize
from tests.server_process import running_server
from tests.system.airflow_processes import AirflowProcesses, Run, eventually, running_airflow

pytestmark = pytest.mark.system

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "dags_examples"
PASSWORDS = {name: f"{name}-password" for name in ("owner", "eve", "vic")}
# Where the pictures of the documents go: DOCS_PICTURES=docs/_static
PICTURES = os.environ.get("DOCS_PICTURES")
RECORDS = 100_000


@dataclass
class World:
    """Airflow and its users.

    Airflow's simple auth manager cannot deny reading a Dag to somebody who has logged in. So the one
    here knows that only its owner may see the private Dag; eve may do anything else, and vic may only
    read.
    """

    airflow: AirflowProcesses
    example: Run
    gates: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("pages")
    dags, data, home = folder / "dags", folder / "data", folder / "airflow"
    for each in (dags, data):
        each.mkdir()
    shutil.copy(HERE / "page_dags" / "watched_batches.py", dags)
    shutil.copy(EXAMPLES / "mlbatch_score_mtcars.py", dags)
    cars = resources.files("airflow_mlbatch.demo") / "data" / "mtcars.csv"
    (data / "mtcars.csv").write_bytes(cars.read_bytes())
    rows = (-row if row % 100 == 7 else row for row in range(RECORDS))
    (data / "large.csv").write_text("x\n" + "".join(f"{row}\n" for row in rows))
    passwords = folder / "passwords.json"
    passwords.write_text(json.dumps(PASSWORDS))
    env = {
        "AIRFLOW__CORE__AUTH_MANAGER": "tests.plugins.auth_manager.PerDagAuthManager",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "owner:admin,eve:admin,vic:viewer",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "MLBATCH_EXAMPLE_DATA": str(data),
        "MLBATCH_TEST_TABLE": str(data / "large.csv"),
    }
    services = str(HERE / "page_services.py")
    gates = {"MLBATCH_TEST_GATES": str(folder)}
    with (
        running_server("--demo", "--services", services, env=gates) as server,
        running_airflow(
            home,
            server.url,
            server.password,
            env=env,
            dags=dags,
            login=("owner", PASSWORDS["owner"]),
        ) as airflow,
    ):
        yield World(airflow, airflow.trigger("mlbatch_score_mtcars"), folder)


class Tab:
    """A browser in which somebody has logged in with Airflow's own form."""

    def __init__(self, browser: Any, url: str, user: str) -> None:
        self.browser, self.url = browser, url
        browser.delete_all_cookies()
        browser.get(f"{url}/auth/login/")
        name, password = eventually(lambda: browser.find_elements("css selector", "form input"))[:2]
        name.send_keys(user)
        password.send_keys(PASSWORDS[user])
        browser.find_element("css selector", "form button[type=submit]").click()
        eventually(lambda: browser.get_cookie("_token"), what=f"{user} is logged in")

    def open(self, path: str) -> None:
        self.browser.get(f"{self.url}/{path}")

    def text(self) -> str:
        return str(self.browser.execute_script("return document.body.innerText"))

    def shows(self, *words: str) -> None:
        """Wait until the page shows these words; it is not loaded anew."""
        try:
            eventually(lambda: all(word in self.text() for word in words), what=str(words))
        except AssertionError as error:
            raise AssertionError(f"{error}; the page says:\n{self.text()}") from None

    def click(self, words: str) -> None:
        """Press the last button or link with these words."""
        script = (
            "const found = [...document.querySelectorAll('button, a')]"
            ".filter(each => each.textContent.trim() === arguments[0] && each.checkVisibility());"
            "found.at(-1)?.click(); return found.length"
        )
        eventually(lambda: self.browser.execute_script(script, words), what=f"press {words!r}")

    def follow_extra_link(self, run: Run, task_id: str, map_index: int = -1) -> str:
        """From Airflow's page about a task to that of its batch; returns the address."""
        mapped = f"/mapped/{map_index}" if map_index >= 0 else ""
        self.open(f"dags/{run.dag_id}/runs/{run.run_id}/tasks/{task_id}{mapped}/details")
        selector = "a[href*='mlbatch/dags/']"
        found = eventually(
            lambda: self.browser.find_elements("css selector", selector), what="the extra link"
        )
        address = str(found[0].get_attribute("href"))
        self.browser.get(address)
        return address

    def is_wider_than_the_screen(self) -> bool:
        """Whether the page scrolls sideways; a wide table does so in a place of its own."""
        root = "document.documentElement"
        return bool(self.browser.execute_script(f"return {root}.scrollWidth > {root}.clientWidth"))

    def keep_picture(self, name: str) -> None:
        """Keep what is to be seen, with its pictures."""
        loaded = "return [...document.images].every(each => each.complete)"
        eventually(lambda: self.browser.execute_script(loaded), what="pictures are drawn")
        self.browser.save_screenshot(str(Path(PICTURES or ".").resolve() / name))

    def status_of(self, path: str, method: str = "GET") -> int:
        """What a script of the page would be answered."""
        script = "return fetch(arguments[0], {method: arguments[1]}).then(reply => reply.status)"
        return int(self.browser.execute_script(script, f"{self.url}/{path}", method))

    def look(self, width: int, theme: str) -> None:
        """Give the page so many pixels and one of Airflow's two choices of colours."""
        resize(self.browser, width)
        self.browser.execute_script("localStorage.setItem('theme', arguments[0])", theme)
        self.browser.refresh()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def tab(browser: Any, world: World) -> Tab:
    """The owner's."""
    return Tab(browser, world.airflow.url, "owner")


@pytest.fixture(scope="module")
def batches(tab: Tab, world: World) -> Run:
    """A run that starts once somebody is there to watch it."""
    return world.airflow.trigger(PRIVATE_DAG)


def test_a_bar_moves_without_a_reload(tab: Tab, world: World, batches: Run) -> None:
    batches.wait_for_task("large", "deferred")
    address = tab.follow_extra_link(batches, "large")
    assert address.endswith("/tasks/large/-1")
    bar = "return document.querySelector('progress')?.value ?? 0"
    tab.shows("of 100,000", "running")
    assert 0 <= tab.browser.execute_script(bar) < RECORDS
    tab.browser.execute_script("window.isLoadedOnce = true")
    (world.gates / "half").touch()
    tab.shows("100,000 of 100,000 (100 %)", "complete", "records, page 1 of")
    assert tab.browser.execute_script(bar) == RECORDS
    tab.browser.find_element("css selector", "#only-failed").click()
    # The record's own input beside its error.
    tab.shows("x is negative: -7", "-107")
    assert tab.browser.execute_script("return window.isLoadedOnce")


def states_of(run: Run, task_id: str) -> list[str]:
    return [task["state"] for task in run.tasks() if task["task_id"] == task_id]


def test_links_of_mapped_and_finished_tasks(tab: Tab, batches: Run) -> None:
    eventually(
        lambda: states_of(batches, "mapped") == ["success", "success"], what="both have scored"
    )
    assert tab.follow_extra_link(batches, "mapped", 1).endswith("/tasks/mapped/1")
    tab.shows("2 of 2 (100 %)", "x is negative: -2", "[1]")


def test_a_thumbnail_of_the_example_opens(tab: Tab, world: World) -> None:
    assert world.example.wait_for_end() == "success"
    for task_id in ("score", "wait", "results"):
        tab.follow_extra_link(world.example, task_id)
        tab.shows("mtService v1.0.0", "32 of 32 (100 %)", "Scored table")
    drawn = (
        "const found = document.querySelector('button.picture img');"
        "found?.scrollIntoView(); return found && found.complete && found.naturalWidth > 0"
    )
    eventually(lambda: tab.browser.execute_script(drawn), what="a thumbnail is drawn")
    tab.browser.execute_script("document.querySelector('button.picture').click()")
    tab.shows(", record 0")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_nothing_is_wider_than_the_screen(
    tab: Tab, world: World, batches: Run, width: int, theme: str
) -> None:
    example = "/".join(("mlbatch/dags", world.example.dag_id, "runs", world.example.run_id))
    pages = {
        "mlbatch/": ("mtService v1.0.0", "Batches 1 to "),
        f"{example}/tasks/score/-1": ("32 records, page 1 of", "Scored table", "answer"),
        f"mlbatch/dags/{PRIVATE_DAG}/runs/{batches.run_id}/tasks/large/-1": ("x is negative: -7",),
    }
    for path, words in pages.items():
        tab.open(path)
        tab.look(width, theme)
        tab.shows(*words)
        if PICTURES and PRIVATE_DAG not in path:
            tab.keep_picture(f"{'batch' if 'tasks' in path else 'batches'}-{theme}-{width}.png")
        chosen = tab.browser.execute_script("return document.documentElement.dataset.theme")
        assert (chosen, tab.is_wider_than_the_screen()) == (theme, False), path


def test_a_batch_is_cancelled(tab: Tab, batches: Run) -> None:
    batches.wait_for_task("held", "deferred")
    tab.follow_extra_link(batches, "held")
    tab.shows("0 of 1 (0 %)", "running")
    tab.click("Cancel batch…")
    tab.shows("Cancel this batch?")
    tab.click("Cancel the batch")
    tab.shows("gone", "does not have this batch any more")
    batches.wait_for_task("held", "failed")


def test_somebody_without_rights_sees_nothing(browser: Any, world: World, batches: Run) -> None:
    eve = Tab(browser, world.airflow.url, "eve")
    eve.open("mlbatch/")
    eve.shows("mtService", "Batches 1 to 1 of 1")
    assert PRIVATE_DAG not in eve.text()
    page = f"mlbatch/dags/{PRIVATE_DAG}/runs/{batches.run_id}/tasks/large/-1"
    eve.open(page)
    eve.shows("No permission")
    for path in (page, f"{page}/status", f"{page}/records"):
        assert eve.status_of(path) == 403
    assert eve.status_of(f"{page}/cancel", "POST") == 403


def test_somebody_who_may_only_read_cannot_cancel(browser: Any, world: World) -> None:
    vic = Tab(browser, world.airflow.url, "vic")
    run = world.example
    page = f"mlbatch/dags/{run.dag_id}/runs/{run.run_id}/tasks/score/-1"
    vic.open(page)
    vic.shows("mtService v1.0.0", "32 of 32 (100 %)")
    assert vic.status_of(f"{page}/records") == 200
    assert vic.status_of(f"{page}/cancel", "POST") == 403
    browser.delete_all_cookies()
    for method, path in (("GET", "status"), ("GET", "records"), ("POST", "cancel")):
        assert vic.status_of(f"{page}/{path}", method) == 401
