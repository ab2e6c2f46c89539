"""The `@service` decorator: what it takes, and what it refuses at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol.services import Parameter
from airflow_mlbatch.server import service
from airflow_mlbatch.server.registry import load_services


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
