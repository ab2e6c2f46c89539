"""Damaged tables of every format, for some seconds; ``make fuzz`` goes on for longer."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from tests.datasets.fuzzing import cases, check, sound_files

SEED, CASES = 20, 240


@pytest.mark.parametrize("name", sorted(sound_files()))
def test_what_is_not_damaged_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(sound_files()[name])
    assert check(path) == "read"


def test_damaged_tables_are_read_or_refused_in_our_words(tmp_path: Path) -> None:
    results = set()
    for number, name, data in islice(cases(SEED, sound_files()), CASES):
        path = tmp_path / name
        path.write_bytes(data)
        try:
            results.add(check(path))
        except Exception as error:
            raise AssertionError(f"case {number} of seed {SEED}: {name}") from error
    assert results == {"read", "refused"}


def test_a_case_can_be_repeated() -> None:
    once, again = (list(islice(cases(7, sound_files()), 20)) for _ in range(2))
    assert once == again
    assert any(data != sound_files()[name] for _, name, data in once)
