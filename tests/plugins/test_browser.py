"""The pages in Chromium: what they show, what runs in them, and that they fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_mlbatch.hooks import MLBatchHook
from tests.plugins.chromium import chromium, log_in, resize
from tests.plugins.conftest import (
    MakeTask,
    Ran,
    eventually,
    note_of,
    running_api_server,
    token_of,
)
from tests.plugins.services import MARKUP, NAME

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


def text_of(browser: Any) -> str:
    return str(browser.execute_script("return document.body.innerText"))


def shows(browser: Any, *words: str) -> None:
    """Wait until the page shows these words; it is never loaded anew."""
    eventually(lambda: all(word in text_of(browser) for word in words), f"{words} are there")


def click(browser: Any, words: str) -> None:
    """Press the button with these words, as the keyboard would."""
    script = (
        "const found = [...document.querySelectorAll('button')]"
        ".filter(b => b.textContent === arguments[0] && b.checkVisibility());"
        "found.at(-1)?.click(); return found.length"
    )
    eventually(lambda: browser.execute_script(script, words), f"button {words!r}")


def violations(browser: Any) -> list[str]:
    """What the browser complains about."""
    return [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def complete(hook: MLBatchHook, service: str, version: str, values: list[float]) -> str:
    execution_id = hook.start_batch(service, version, {"x": values})
    hook.watch_batch(service, version, execution_id, poll_interval=0.05)
    return execution_id


@pytest.mark.quick
def test_a_running_batch_moves_and_is_cancelled(
    browser: Any, api_server: str, hook: MLBatchHook, gates: Path, make_task: MakeTask
) -> None:
    inputs = {"gate": [None, "move", "never"], "x": [1.0, 2.0, 3.0]}
    execution_id = hook.start_batch("held", "1", inputs)
    task = make_task(note=note_of("held", execution_id, count=3), state="deferred", map_index=4)
    log_in(browser, api_server, token_of("ada"))
    browser.get(f"{api_server}/{task.path}")
    shows(browser, "1 of 3 (33 %)", "running", "mlbatch_default", "[4]")
    (gates / "move").touch()
    shows(browser, "2 of 3 (66 %)")
    click(browser, "Cancel batch…")
    shows(browser, "Cancel this batch?")
    click(browser, "Keep it")
    assert execution_id in hook.list_batch_executions("held", "1")
    click(browser, "Cancel batch…")
    click(browser, "Cancel the batch")
    shows(browser, "gone", "does not have this batch any more")
    assert execution_id not in hook.list_batch_executions("held", "1")
    assert violations(browser) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_a_complete_batch_fits(
    browser: Any,
    api_server: str,
    hook: MLBatchHook,
    make_task: MakeTask,
    theme: str,
    width: int,
) -> None:
    execution_id = complete(hook, "cars", "1", [1.0, 4.0, -1.0, 20.0])
    task = make_task(note=note_of("cars", execution_id, count=4))
    log_in(browser, api_server, token_of("ada"), theme)
    resize(browser, width)
    browser.get(f"{api_server}/{task.path}")
    shows(browser, "4 of 4 (100 %)", "4 records, page 1 of 1", "y: 3 values from 1 to 4.472136")
    assert browser.execute_script("return document.documentElement.dataset.theme") == theme
    # Only tables scroll sideways, each in a place of its own.
    script = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(script) == 0
    browser.find_element("css selector", "#only-failed").click()
    shows(browser, "1 failed records, page 1 of 1", "x is negative: -1")
    assert "looking at 1.0" not in text_of(browser)
    browser.find_element("css selector", "#only-failed").click()
    click_picture = "document.querySelector('button.picture').click()"
    eventually(
        lambda: browser.execute_script(
            "const found = document.querySelector('button.picture img');"
            "return found && found.complete && found.naturalWidth === 64"
        ),
        "the thumbnail is drawn",
    )
    browser.execute_script(click_picture)
    shows(browser, "plot.png, record 0")
    browser.get(f"{api_server}/mlbatch/")
    shows(browser, "Batches 1 to 1 of 1", "complete", "100 %")
    assert browser.execute_script(script) == 0
    assert violations(browser) == []


@pytest.mark.parametrize("width", [1400, 400])
def test_a_table_in_shards(browser: Any, api_server: str, ran: Ran, width: int) -> None:
    log_in(browser, api_server, token_of("ada"))
    resize(browser, width)
    browser.get(f"{api_server}/mlbatch/")
    shows(browser, "3 of 3 shards")
    browser.find_element("link text", "large").click()
    shows(browser, "3 of 3", "150 of 150 (100 %)", "Shards 1 to 3 of 3")
    script = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(script) == 0
    browser.find_element("link text", "shard 1").click()
    shows(browser, "a shard of the table large", "cars 1", "Scored table")
    browser.find_element("link text", "large").click()
    shows(browser, "Shards 1 to 3 of 3")
    assert violations(browser) == []


def test_inputs_and_the_written_table(browser: Any, api_server: str, ran: Ran) -> None:
    log_in(browser, api_server, token_of("ada"))
    browser.get(f"{api_server}/{ran.task('score')}")
    shows(browser, "120 records, page 1 of 3", "Show its 120 rows", "Show its 12 rows")
    heads = "return [...document.querySelectorAll('th[scope=col]')].map(head => head.textContent)"
    eventually(lambda: browser.execute_script(heads)[:3] == ["Index", "x", "y"], "inputs are shown")
    # Above numbers that stand on the right.
    on_the_right = heads.replace("th[scope=col]", "th[scope=col].number")
    assert browser.execute_script(on_the_right) == ["Index", "x", "y"]
    browser.find_element("css selector", "#only-failed").click()
    shows(browser, "12 failed records", "x is negative: -1")
    click(browser, "Show its 120 rows")
    shows(browser, "Rows 1 to 50 of 120", "car 10")
    click(browser, "Next rows")
    shows(browser, "Rows 51 to 100 of 120", "car 60")
    assert violations(browser) == []


HOSTILE = [
    ("hostile-error", MARKUP[:60]),
    ("hostile-output", "1"),
    ("hostile-console", "1"),
    ("hostile-files", "1"),
    (MARKUP[:80], "1"),
    ("hostile-length", "1"),
]


@pytest.mark.parametrize(("service", "version"), HOSTILE)
def test_hostile_services_run_nothing(
    browser: Any,
    api_server: str,
    hook: MLBatchHook,
    make_task: MakeTask,
    service: str,
    version: str,
) -> None:
    execution_id = complete(hook, service, version, [1.0, 0.0])
    task = make_task(note=note_of(service, execution_id, version, count=2))
    log_in(browser, api_server, token_of("ada"))
    resize(browser, 1400)
    for address in (f"{api_server}/{task.path}", f"{api_server}/mlbatch/"):
        browser.get(address)
        shows(browser, service, "complete")
        if address.endswith(task.path):
            shows(browser, "2 records, page 1 of 1")
            browser.execute_script(
                "document.querySelectorAll('details').forEach(each => { each.open = true; })"
            )
        # What would have run has had its chance: the page has drawn itself twice since.
        browser.execute_async_script(
            "const done = arguments[0];"
            "requestAnimationFrame(() => requestAnimationFrame(() => done()))"
        )
        assert browser.execute_script("return window.hacked === undefined")
        injected = "return document.querySelectorAll('main script, main svg[onload], [onerror], textarea').length"
        assert browser.execute_script(injected) == 0
        script = (
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert browser.execute_script(script) == 0
    if service == "hostile-output":
        browser.get(f"{api_server}/{task.path}")
        shows(browser, NAME)


def test_airflow_s_own_page_frames_the_list(
    browser: Any, api_server: str, make_task: MakeTask
) -> None:
    make_task(note=note_of("cars", "some-id"), task_id="framed")
    log_in(browser, api_server, token_of("ada"))
    resize(browser, 1400)
    browser.get(f"{api_server}/plugin/mlbatch-batches")
    frame = eventually(
        lambda: browser.find_elements("css selector", "iframe[title=Batches]"), "the frame"
    )[0]
    browser.switch_to.frame(frame)
    shows(browser, "Batches 1 to", "framed")
    browser.find_element("link text", "framed").click()
    shows(browser, "cars 1", "Connection")
    browser.switch_to.default_content()


def test_behind_a_path(
    browser: Any, api_server: str, hook: MLBatchHook, make_task: MakeTask
) -> None:
    execution_id = complete(hook, "cars", "1", [1.0])
    task = make_task(note=note_of("cars", execution_id, count=1), task_id="behind")
    with running_api_server("/some/where") as root:
        log_in(browser, root, token_of("ada"))
        browser.get(f"{root}/{task.path}")
        shows(browser, "1 of 1 (100 %)", "1 records, page 1 of 1")
        browser.get(f"{root}/mlbatch/")
        shows(browser, "Batches 1 to", "behind")
        browser.find_element("link text", "behind").click()
        shows(browser, "1 of 1 (100 %)")


def test_a_page_without_a_login_says_so(browser: Any, api_server: str, make_task: MakeTask) -> None:
    task = make_task(note=note_of("cars", "some-id"))
    browser.delete_all_cookies()
    browser.get(f"{api_server}/{task.path}")
    shows(browser, "You are not logged in", "Log in")
