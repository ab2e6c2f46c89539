"""The pages by keyboard and as a screen reader is told about them."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_mlbatch.hooks import MLBatchHook
from tests.plugins.chromium import log_in, resize
from tests.plugins.conftest import MakeTask, Pages, Ran, eventually, note_of, token_of
from tests.plugins.test_browser import browser, complete, shows

__all__ = ["browser"]

pytestmark = pytest.mark.system

STOPS = (
    "a[href], button:not(:disabled), select:not(:disabled), input:not(:disabled), summary, "
    "[tabindex='0']"
)
# What the keyboard should reach: everything of these that is to be seen, in the order of the page.
REACHABLE = f"return [...document.querySelectorAll(`{STOPS}`)].filter(e => e.checkVisibility())"


@pytest.fixture
def complete_batch(hook: MLBatchHook, make_task: MakeTask) -> str:
    """The path of the page of a batch with pictures, files, console output and a failure."""
    values = [float(value) for value in (1, 4, -1, 20, *range(100, 160))]
    execution_id = complete(hook, "cars", "1", values)
    return str(make_task(note=note_of("cars", execution_id, count=len(values))).path)


def press(browser: Any, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    for key in keys:
        ActionChains(browser).send_keys(getattr(Keys, key)).perform()


def focused(browser: Any) -> Any:
    return browser.execute_script("return document.activeElement")


def tab_to(browser: Any, words: str) -> None:
    """Press Tab until something with these words has the focus."""
    for _ in range(300):
        press(browser, "TAB")
        name = browser.execute_script(
            "const e = document.activeElement;"
            "return e.getAttribute('aria-label') || e.id || e.textContent"
        )
        if name == words:
            return
    raise AssertionError(f"Tab does not reach {words!r}")


def use(browser: Any, words: str, key: str, *shown: str) -> None:
    """Reach something by Tab, press a key on it, and wait for what that shows."""
    tab_to(browser, words)
    press(browser, key)
    shows(browser, *shown)


def problems(browser: Any) -> list[str]:
    """What axe-core finds wrong with the page, with the places."""
    axe = pytest.importorskip("axe_core_python.selenium", reason="axe-core-python is missing")
    found = axe.Axe().run(browser)["violations"]
    return [
        f"{each['id']}: {each['help']}: {[node['html'][:200] for node in each['nodes']][:3]}"
        for each in found
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_axe_finds_nothing(
    browser: Any, api_server: str, complete_batch: str, nobody: Pages, theme: str, width: int
) -> None:
    log_in(browser, api_server, token_of("ada"), theme)
    resize(browser, width)
    browser.get(f"{api_server}/mlbatch/")
    shows(browser, "Batches 1 to ", "complete")
    assert problems(browser) == []
    browser.get(f"{api_server}/{complete_batch}")
    shows(browser, "64 records, page 1 of 2", "y: 63 values")
    assert problems(browser) == []
    browser.execute_script("document.querySelector('button.picture').click()")
    shows(browser, "plot.png, record 0")
    assert problems(browser) == []
    browser.delete_all_cookies()
    browser.get(f"{api_server}/{complete_batch}")
    shows(browser, "You are not logged in")
    assert problems(browser) == []


def test_axe_finds_nothing_in_a_table(browser: Any, api_server: str, ran: Ran) -> None:
    log_in(browser, api_server, token_of("ada"))
    browser.get(f"{api_server}/mlbatch/")
    shows(browser, "3 of 3 shards")
    browser.find_element("link text", "large").click()
    shows(browser, "Shards 1 to 3 of 3")
    assert problems(browser) == []
    browser.get(f"{api_server}/{ran.task('score')}")
    shows(browser, "Show its 120 rows")
    use(browser, "Show its 120 rows", "ENTER", "Rows 1 to 50 of 120")
    assert focused(browser).get_attribute("aria-label") == "Rows of Scored table"
    assert problems(browser) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_tab_reaches_everything_and_shows_where_it_is(
    browser: Any, api_server: str, complete_batch: str, theme: str
) -> None:
    log_in(browser, api_server, token_of("ada"), theme)
    resize(browser, 1400)
    for path, words in (("mlbatch/", "Batches 1 to "), (complete_batch, "page 1 of 2")):
        browser.get(f"{api_server}/{path}")
        shows(browser, words)
        wanted = browser.execute_script(REACHABLE)
        assert len(wanted) > 4
        for stop in wanted:
            press(browser, "TAB")
            assert focused(browser) == stop
            outline = browser.execute_script(
                "const style = getComputedStyle(document.activeElement);"
                "return [style.outlineStyle, parseFloat(style.outlineWidth)]"
            )
            assert outline[0] != "none", stop.get_attribute("outerHTML")
            assert outline[1] >= 2


def test_the_focus_stays_where_a_page_is_turned(
    browser: Any, api_server: str, complete_batch: str
) -> None:
    log_in(browser, api_server, token_of("ada"))
    browser.get(f"{api_server}/{complete_batch}")
    shows(browser, "64 records, page 1 of 2")
    use(browser, "Next page", "ENTER", "page 2 of 2")
    # There is no next page: the focus is on the table.
    assert focused(browser).get_attribute("aria-label") == "Table of records"
    assert "64 records, page 2 of 2" in live_text(browser)
    use(browser, "Previous page", "ENTER", "page 1 of 2")
    use(browser, "only-failed", "SPACE", "1 failed records, page 1 of 1")
    assert focused(browser).get_attribute("id") == "only-failed"
    assert "1 failed records, page 1 of 1" in live_text(browser)
    tab_to(browser, "Read again")
    press(browser, "ENTER")
    # One look: between two of them the button may be drawn anew.
    is_on_the_button = (
        "const e = document.activeElement;"
        "return e.textContent === 'Read again' && e.checkVisibility()"
    )
    eventually(
        lambda: browser.execute_script(is_on_the_button),
        "the focus is on the button that was drawn anew",
    )


def live_text(browser: Any) -> str:
    """What the live regions of the page say."""
    script = (
        "return [...document.querySelectorAll('[role=status]')].map(e => e.textContent).join('\\n')"
    )
    return str(browser.execute_script(script))


def test_a_picture_opens_and_closes_by_keyboard(
    browser: Any, api_server: str, complete_batch: str
) -> None:
    log_in(browser, api_server, token_of("ada"))
    browser.get(f"{api_server}/{complete_batch}")
    shows(browser, "page 1 of 2")
    use(browser, "Open plot.png of record 1", "ENTER", "plot.png, record 1")
    assert focused(browser).text == "Close"
    press(browser, "ESCAPE")
    eventually(lambda: not browser.find_elements("css selector", "dialog"), "it is closed")
    assert focused(browser).get_attribute("aria-label") == "Open plot.png of record 1"


def test_a_batch_is_cancelled_by_keyboard(
    browser: Any, api_server: str, hook: MLBatchHook, make_task: MakeTask
) -> None:
    execution_id = hook.start_batch("held", "1", {"gate": [None, "never"], "x": [1.0, 2.0]})
    task = make_task(note=note_of("held", execution_id, count=2), state="deferred")
    log_in(browser, api_server, token_of("ada"))
    browser.get(f"{api_server}/{task.path}")
    shows(browser, "1 of 2 (50 %)")
    use(browser, "Cancel batch…", "ENTER", "Cancel this batch?")
    assert focused(browser).text == "Keep it"
    press(browser, "ENTER")
    assert focused(browser).text == "Cancel batch…"
    assert execution_id in hook.list_batch_executions("held", "1")
    press(browser, "ENTER")
    press(browser, "TAB")
    assert focused(browser).text == "Cancel the batch"
    press(browser, "ENTER")
    shows(browser, "does not have this batch any more")
    eventually(lambda: "The batch is gone." in live_text(browser), "it is said aloud")


def test_what_a_screen_reader_is_told(
    browser: Any, api_server: str, hook: MLBatchHook, make_task: MakeTask
) -> None:
    execution_id = hook.start_batch("held", "1", {"gate": [None, "never"], "x": [1.0, 2.0]})
    task = make_task(note=note_of("held", execution_id, count=2), state="deferred")
    log_in(browser, api_server, token_of("ada"))
    browser.get(f"{api_server}/{task.path}")
    shows(browser, "1 of 2 (50 %)", "Only failed records")
    tree = tree_of(browser)
    assert ("heading", "held 1") in tree
    assert ("navigation", "Breadcrumb") in tree
    assert ("region", "Progress") in tree
    assert ("region", "Records") in tree
    assert ("progressbar", "Records scored") in tree
    assert ("button", "Cancel batch…") in tree
    assert ("checkbox", "Only failed records") in tree
    assert ("columnheader", "Success") in tree
    assert ("rowheader", "0") in tree
    assert any(role == "status" for role, _ in tree)
    for role, name in tree:
        is_control = role in {"button", "link", "checkbox", "combobox", "progressbar", "image"}
        assert name or not is_control, f"a {role} has no name"
    browser.get(f"{api_server}/mlbatch/")
    shows(browser, "Batches 1 to ", "50 %")
    tree = tree_of(browser)
    assert {("combobox", "Dag"), ("combobox", "Service"), ("combobox", "Task state")} <= tree
    assert ("progressbar", "Progress of score") in tree
    assert ("rowheader", "score") in tree
    assert any(role == "table" and name.startswith("Batches 1 to ") for role, name in tree)
    hook.cancel_batch("held", "1", execution_id)


def tree_of(browser: Any) -> set[tuple[str, str]]:
    """Roles and names in the accessibility tree that Chromium hands to screen readers."""
    found = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    return {
        (node["role"]["value"], node.get("name", {}).get("value", "").strip())
        for node in found
        if not node["ignored"]
    }
