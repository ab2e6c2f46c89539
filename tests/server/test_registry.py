"""The `@service` decorator: what it takes, and what it refuses at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol.services import Parameter
from airflow_mlbatch.server import service
from airflow_mlbatch.server.registry import load_services
from tests.server.api import Api
from tests.server_process import running_server


def described(name: str) -> Any:
    """The description that a name was published under."""
    return load_services([])[name, "1"].description


def test_types_by_python_class_and_by_the_contracts_words() -> None:
    @service(
        "every type",
        "1",
        inputs={"a": bool, "b": int, "c": float, "d": str, "e": list, "f": np.ndarray, "g": dict},
        outputs={"h": pd.DataFrame, "i": pd.Series, "j": "matrix", "k": "data.frame"},
        artifacts=["a.png"],
    )
    def function(**inputs: Any) -> None:
        """What it is for."""

    found = described("every type")
    assert [parameter.type for parameter in found.inputs] == [
        "logical",
        "integer",
        "numeric",
        "character",
        "vector",
        "matrix",
        "data.frame",
    ]
    assert found.outputs == (
        Parameter("h", "data.frame"),
        Parameter("i", "vector"),
        Parameter("j", "matrix"),
        Parameter("k", "data.frame"),
    )
    assert found.artifacts == ("a.png",)
    assert found.operation_id == "function"
    assert found.description == "What it is for."


def test_types_by_numpys_scalar_classes() -> None:
    @service(
        "numpy types",
        "1",
        inputs={"a": np.bool_, "b": np.int64, "c": np.uint8, "d": np.float64, "e": np.float32},
        outputs={"f": np.str_},
    )
    def function(**inputs: Any) -> None:
        pass

    found = described("numpy types")
    assert [parameter.type for parameter in found.inputs] == [
        "logical",
        "integer",
        "integer",
        "numeric",
        "numeric",
    ]
    assert found.outputs == (Parameter("f", "character"),)


SUBCLASSES = r"""
import enum
import numpy as np
from airflow_mlbatch.server import service

class Colour(str, enum.Enum):
    RED = "red"

class Level(enum.IntEnum):
    HIGH = 3

class Metres(float):
    pass

names = np.array(["sepal length", "sepal width"])

@service(
    np.str_("iris"),
    np.str_("1"),
    inputs={name: np.str_("numeric") for name in names},
    outputs={names[0]: float, "colour": str, "level": int, "all": list, "table": "data.frame"},
    artifacts=[np.str_("a.txt")],
    description=np.str_("half a letter: \ud83d"),
)
def iris(**inputs):
    open("a.txt", "w").close()
    values = {names[0]: Metres(2.5), "colour": Colour.RED, "level": Level.HIGH}
    return {**values, "all": list(values.values()), "table": {Colour.RED: [Level.HIGH]}}
"""


def test_names_and_values_of_subclasses_of_pythons_types(tmp_path: Path) -> None:
    source = tmp_path / "subclasses.py"
    source.write_text(SUBCLASSES)
    with running_server("--services", str(source), "--workers", "1") as server:
        api = Api(server.url)
        (found,) = api.get("/services/iris/1").json()
        result = api.consume("iris", **{"sepal length": 1, "sepal width": 2})
    assert found["description"] == "half a letter: ?"
    assert [item["name"] for item in found["inputParameterDefinitions"]] == [
        "sepal length",
        "sepal width",
    ]
    assert result["errorMessage"] == ""
    assert result["changedFiles"] == ["a.txt"]
    assert result["outputParameters"] == {
        "sepal length": 2.5,
        "colour": "red",
        "level": 3,
        "all": [2.5, "red", 3],
        "table": {"red": [3]},
    }


def publish(function: Any = lambda x: x, **changes: Any) -> None:
    declaration = {"name": "s", "version": "1", "inputs": {"x": float}, "outputs": {"y": float}}
    service(**{**declaration, **changes})(function)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": ""}, "found name ''"),
        ({"version": ".."}, "found version '..'"),
        ({"version": 1.0}, "found version 1.0"),
        ({"name": None}, "found name None"),
        ({"name": "s\udc80"}, "found name 's\\udc80'"),
        ({"name": "a\nb"}, "found name 'a\\nb'"),
        ({"description": 5}, "found description 5, expected text"),
        ({"inputs": {1: float}}, "inputs: found the name 1"),
        ({"artifacts": "a.png"}, "artifacts: found 'a.png', expected a list of names"),
        ({"inputs": {"x": complex}}, "inputs, 'x': found type <class 'complex'>"),
        ({"inputs": {"x": "number"}}, "inputs, 'x': found type 'number'"),
        ({"outputs": {"": float}}, "outputs: found the name ''"),
        ({"outputs": {'a"b': float}}, "outputs: found the name 'a\"b'"),
        ({"outputs": ["y"]}, "outputs: found ['y'], expected a dict"),
        ({"artifacts": ["../x"]}, "artifacts: found '../x'"),
        ({"artifacts": [".."]}, "artifacts: found '..'"),
        ({"artifacts": ["a\0"]}, "artifacts: found 'a\\x00'"),
        ({"artifacts": ["x" * 300]}, "expected a plain file name"),
        ({"artifacts": ["a.txt", "A.txt"]}, "found artifacts of one name"),
        ({"function": lambda z: z}, "the function cannot be called with (x)"),
        ({"function": lambda x, z: z}, "the function cannot be called with (x)"),
    ],
)
def test_a_declaration_that_cannot_be_used(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        publish(**changes)
    assert words in str(caught.value)
    assert str(caught.value).startswith("service ")


def test_a_coroutine_function() -> None:
    async def function(x: float) -> float:
        return x

    with pytest.raises(InputError, match="expected a plain one"):
        publish(function)


def test_one_name_and_version_for_two_functions() -> None:
    def first(x: float) -> float:
        return x

    def second(x: float) -> float:
        return x

    publish(first, name="twice")
    publish(first, name="twice")
    publish(first, name="twice", version="2")
    with pytest.raises(InputError, match=r"published twice, by .*first and .*second"):
        publish(second, name="twice")
