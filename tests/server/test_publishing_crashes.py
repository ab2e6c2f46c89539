"""A server that is killed while services are published, changed and deleted."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import pytest
import requests

from tests.server.publishing import Publisher, definitions
from tests.server_process import RunningServer, running_server

NAMES = ("a", "b")
PATIENCE_SECONDS = 60


class Deployer:
    """Publishes, changes and deletes services without a pause, until the server is gone.

    ``maybe`` holds for each service the forms that it may have after the crash: what was answered
    last, and what was asked for since. A form is a number; ``None`` stands for no service.
    """

    def __init__(self, server: RunningServer, first: int) -> None:
        self.maybe: dict[str, set[int | None]] = {}
        self._client = Publisher(server.url)
        self._number = first
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self, known: dict[str, int | None]) -> None:
        self.maybe = {name: {form} for name, form in known.items()}
        self._thread.start()

    def join(self) -> int:
        """Wait until it has seen that the server is gone; returns how far its numbers are."""
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        return self._number

    def _work(self) -> None:
        try:
            while True:
                for name in NAMES:
                    self._change(name)
        except requests.RequestException:
            return

    def _change(self, name: str) -> None:
        (before,) = self.maybe[name]
        self._number += 1
        # Deleted after two forms; only then published again.
        after = None if before is not None and self._number % 3 == 0 else self._number
        self.maybe[name] = {before, after}
        if after is None:
            reply = self._client.delete(f"/services/{name}/1")
        else:
            # The object and the code tell the same number, so that a mixture shows.
            reply = self._client.publish(
                name,
                "1",
                f"y = x * 1_000_000 + number * 1_000 + {after % 1000}",
                {"number": after % 1000},
                is_update=before is not None,
                inputParameterDefinitions=definitions(x="numeric"),
                outputParameterDefinitions=definitions(y="numeric"),
            )
        assert reply.status_code in (200, 201), reply.text
        self.maybe[name] = {after}


def form_of(client: Publisher, name: str) -> int | None:
    """The number of a service's form, after a look at whether it is whole."""
    if client.get(f"/services/{name}/1").status_code == 404:
        return None
    found = client.consume(name, x=1)
    assert found["errorMessage"] == ""
    answer = int(found["outputParameters"]["y"]) - 1_000_000
    assert answer // 1000 == answer % 1000, "objects of one form with the code of another"
    return answer % 1000


def assert_nothing_is_left(server: RunningServer, count: int) -> None:
    data = server.data_dir
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        services, trash = os.listdir(data / "services"), os.listdir(data / "trash")
        work = [entry for entry in os.listdir(data / "work") if not entry.startswith("worker-")]
        if (len(services), trash, work) == (count, [], []):
            return
        time.sleep(0.02)
    raise AssertionError(f"{count} services, but found {services}, {trash}, {work}")


@pytest.mark.parametrize(
    "moments", [4, pytest.param(50, marks=[pytest.mark.system, pytest.mark.timeout(900)])]
)
def test_each_service_is_whole_after_sigkill(tmp_path: Path, moments: int) -> None:
    chance = random.Random(moments)
    known: dict[str, int | None] = dict.fromkeys(NAMES)
    number = 0
    with running_server("--allow-publish", "--workers", "1", data_dir=tmp_path / "data") as server:
        kills = 0
        # A loaded machine may be killed before it has answered anything: it gets more moments then.
        while kills < moments or number <= moments:
            kills += 1
            deployer = Deployer(server, number)
            deployer.start(known)
            time.sleep(chance.uniform(0.05, 1.0))
            server.kill()
            number = deployer.join()
            server.start()
            client = Publisher(server.url)
            for name in NAMES:
                known[name] = form_of(client, name)
                expected = {None if form is None else form % 1000 for form in deployer.maybe[name]}
                assert known[name] in expected
            published = sum(form is not None for form in known.values())
            assert_nothing_is_left(server, published)
