"""Names of artifacts from a hostile server."""

from __future__ import annotations

import ntpath
import os
import sys
import unicodedata
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_mlbatch.datasets.artifacts import ArtifactNames, safe_name
from airflow_mlbatch.errors import InputError, UnsafeNameError


def is_reserved(name: str) -> bool:
    """Whether Windows keeps this name for itself, in the words of each Python."""
    if sys.version_info >= (3, 13):
        return ntpath.isreserved(name)
    return PureWindowsPath(name).is_reserved()


@pytest.mark.parametrize(
    "name",
    ["Histogram.png", "answer.csv", "plot 1.png", "größe.txt", ".hidden", "a..b", "x~y", "日本"],
)
def test_ordinary_names_stay(name: str) -> None:
    assert ArtifactNames().place(7, name) == f"7/{name}"


@pytest.mark.parametrize(
    "name",
    [
        "../../x",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "..",
        ".",
        "C:x",
        "c:",
        "\\\\server\\x",
        "a\x00b",
        "",
        "  ",
    ],
)
def test_names_that_point_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(UnsafeNameError, match="artifact: found the name"):
        ArtifactNames().place(0, name)


@pytest.mark.parametrize(
    "name",
    [
        "CON",
        "nul.txt",
        "aux.tar.gz",
        "LPT1",
        "ab:c",
        "a?b",
        "a\nb",
        "x.",
        "x ",
        "y" * 300,
        "z" * 300 + ".png",
    ],
)
def test_names_that_cannot_be_kept_become_safe_ones(name: str) -> None:
    safe = safe_name(name)
    assert safe != name
    assert safe == safe_name(name)
    assert len(safe.encode()) <= 200
    assert not is_reserved(safe)


def test_a_suffix_survives() -> None:
    assert safe_name("z" * 300 + ".png").endswith(".png")
    assert safe_name("nul.txt").startswith("nul~")


def test_names_equal_but_for_case() -> None:
    names = ["B.txt", "a.TXT", "A.txt", "a.txt", "straße", "STRASSE"]
    found = ArtifactNames().places(3, names)
    assert list(found) == names
    assert len({place.casefold() for place in found.values()}) == len(names)
    assert found == {**ArtifactNames().places(3, names[::-1])}
    assert (found["A.txt"], found["B.txt"]) == ("3/A.txt", "3/B.txt")
    one = ArtifactNames()
    assert one.place(3, "A.txt") == "3/A.txt"
    assert one.place(3, "A.txt") == "3/A.txt"
    assert one.place(4, "a.txt") == "4/a.txt"
    with pytest.raises(UnsafeNameError, match="'a.txt' of record 3.*taken by 'A.txt' of record 3"):
        one.place(3, "a.txt")


def test_records_that_share_a_place() -> None:
    names = ArtifactNames("{index}{file_name}")
    assert names.place(1, "2x") == "12x"
    with pytest.raises(UnsafeNameError, match="'x' of record 12.*taken by '2x' of record 1"):
        names.place(12, "x")


# Pieces of which hostile names are made, so that they turn up together.
hostile = st.lists(
    st.sampled_from(
        [
            "..",
            ".",
            "/",
            "\\",
            "a",
            "A",
            "ß",
            "é",
            "e\u0301",
            "CON",
            "nul",
            ":",
            "~",
            "\x00",
            "\n",
            " ",
            *("~3f9a1c2b", ".txt", "x" * 120, "\ud800", "\u202e", "*", "日" * 70),
        ]
    ),
    max_size=5,
).map("".join)


@given(st.lists(hostile | st.text(max_size=12), max_size=8), st.booleans())
@example(["ab:c", "ab_c"], True)
def test_nothing_leaves_and_nothing_is_overwritten(names: list[str], in_turn: bool) -> None:
    kept = ArtifactNames()
    places: dict[str, str] = {}
    for name in names:
        try:
            places[name] = kept.place(0, name) if in_turn else kept.places(0, [name])[name]
        except UnsafeNameError:
            continue
    for place in places.values():
        assert os.path.normpath(place) == place
        folder, _, file = place.partition("/")
        assert (folder, file) == ("0", Path(place).name)
        assert len(file.encode()) <= 200
        assert "\\" not in file
        assert not is_reserved(file)
        assert file == file.rstrip(". ")
        assert not {"Cc", "Cf", "Cs"}.intersection(map(unicodedata.category, file))
    assert len({place.casefold() for place in places.values()}) == len(places)


@pytest.mark.parametrize(
    "template",
    ["{index}/{file_name}", "{file_name}", "{index:06d}-{file_name}", "plots/{index}/{file_name}"],
)
def test_templates(template: str) -> None:
    assert ArtifactNames(template).place(5, "x.png") == template.format(index=5, file_name="x.png")


@pytest.mark.parametrize(
    "template",
    [
        *("", "{index}", "/{file_name}", "../{file_name}", "a/../{file_name}", "./{file_name}"),
        *("a//{file_name}", "{file_name}/", "{index!r}/{file_name}", "{index.real}/{file_name}"),
        *("{0}/{file_name}", "{index:c}{file_name}", "{index:>999999999}/{file_name}"),
        *("{file_name:>9}", "{x}/{file_name}", "{", "C:{file_name}", "s3://b/{file_name}"),
        *("a\\{file_name}", "{file_name[0]}"),
    ],
)
def test_templates_that_are_refused(template: str) -> None:
    with pytest.raises(InputError, match="path_template: found"):
        ArtifactNames(template)
