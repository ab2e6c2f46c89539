"""What is to be published, made of functions, texts, files and objects.

Law: code travels as source text, only data is serialized. Nothing here talks to anybody.
"""

from __future__ import annotations

import ast
import inspect
import pickle
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol.declarations import declared_artifacts, declared_parameters
from airflow_mlbatch.protocol.publications import RUNTIMES, Publication

__all__ = ["Code", "Deployment", "call_of", "deployment_of", "without_decorators"]

Code: TypeAlias = str | Path | Callable[..., Any]
"""Source text, the path of a file with source text, or a Python function."""


@dataclass(frozen=True)
class Deployment:
    """A service ready to be sent.

    :param objects: what the code finds as globals, each serialized; ``None`` where nothing is said
    """

    publication: Publication
    objects: Mapping[str, bytes] | None = None


def deployment_of(
    service_name: str,
    *,
    code: Code | None = None,
    init_code: Code | None = None,
    models: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
    outputs: Mapping[str, Any] | None = None,
    artifacts: Sequence[str] | None = None,
    description: str | None = None,
    operation_id: str | None = None,
    runtime_type: str | None = None,
) -> Deployment:
    """Read what somebody wants to publish; what is left out is not mentioned.

    :param code: what runs for each record. Of a function the source is taken, and a call of it with
        the declared inputs in their order. It returns the output, or a dict of several outputs, and
        what it needs beside its arguments are ``models`` and what ``init_code`` makes.
    :param init_code: what runs before that; a function is called without arguments
    :param models: objects by name. A ``Path`` is a file that holds a serialized object (a pickle, or
        ``.rds`` or ``.RData`` of R), and so are ``bytes``; anything else is pickled.
    :param inputs: names and types, as in ``@service``
    :param runtime_type: ``Python`` or ``R``
    :raises InputError: names the argument that cannot be used
    """
    where = f"service {service_name!r}"
    if runtime_type is not None and runtime_type not in RUNTIMES:
        raise InputError(
            f"{where}, runtime_type: found {runtime_type!r:.80}, expected one of "
            f"{', '.join(RUNTIMES)}"
        )
    takes = None if inputs is None else declared_parameters(where, "inputs", inputs)
    gives = None if outputs is None else declared_parameters(where, "outputs", outputs)
    text = None
    if code is not None:
        names = ([one.name for one in takes or ()], [one.name for one in gives or ()])
        text = _text(where, "code", code, runtime_type, lambda name: call_of(name, *names))
        if operation_id is None and callable(code):
            operation_id = code.__name__
    init_text = None
    if init_code is not None:
        init_text = _text(where, "init_code", init_code, runtime_type, "{}()".format)
    publication = Publication(
        code=text,
        init_code=init_text,
        description=description,
        operation_id=operation_id,
        inputs=None if takes is None else tuple((one.name, one.type) for one in takes),
        outputs=None if gives is None else tuple((one.name, one.type) for one in gives),
        artifacts=None if artifacts is None else declared_artifacts(where, artifacts),
        runtime_type=runtime_type,
    )
    objects = None
    if models is not None:
        objects = {
            name: _serialized(f"{where}, models, {name!r}", value, runtime_type)
            for name, value in models.items()
        }
    return Deployment(publication, objects)


def call_of(function: str, inputs: Sequence[str], outputs: Sequence[str]) -> str:
    """Code that calls a function with the inputs, and leaves what it returns in the outputs."""
    call = f"{function}({', '.join(inputs)})"
    if not outputs:
        return call
    if len(outputs) == 1:
        return f"{outputs[0]} = {call}"
    return "\n".join(
        [f"_returned = {call}", *(f"{name} = _returned[{name!r}]" for name in outputs)]
    )


def without_decorators(source: str) -> str:
    """The source of a module or of a function without what stands above its functions with ``@``."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                for number in range(decorator.lineno, (decorator.end_lineno or 0) + 1):
                    lines[number - 1] = ""
    return "\n".join(lines)


def _text(
    where: str, what: str, code: Code, runtime_type: str | None, call: Callable[[str], str]
) -> str:
    if isinstance(code, str):
        return code
    if isinstance(code, Path):
        try:
            return code.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{where}, {what}: {code} cannot be read: {error}") from None
    if runtime_type == "R":
        raise InputError(f"{where}, {what}: found {code!r:.80}, expected R source text or a Path")
    if not inspect.isfunction(code) or not code.__name__.isidentifier():
        raise InputError(
            f"{where}, {what}: found {code!r:.80}, expected source text, a Path, or a function with "
            "a name"
        )
    try:
        source = without_decorators(textwrap.dedent(inspect.getsource(code))).strip("\n")
    except (OSError, SyntaxError, TypeError) as error:
        raise InputError(
            f"{where}, {what}: the source of {code.__name__}() cannot be read: {error}"
        ) from None
    return f"{source}\n{call(code.__name__)}"


def _serialized(where: str, value: Any, runtime_type: str | None) -> bytes:
    if isinstance(value, Path):
        try:
            return value.read_bytes()
        except OSError as error:
            raise InputError(f"{where}: {value} cannot be read: {error}") from None
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if runtime_type == "R":
        raise InputError(
            f"{where}: found {type(value).__name__}, expected the Path of a file that R has written "
            "(saveRDS or save)"
        )
    try:
        content = pickle.dumps(value, protocol=4)
    except Exception as error:
        return _by_dill(where, value, error)
    # What a script defines is written down as a word that only this script understands.
    return _by_dill(where, value, None) if b"__main__" in content else content


def _by_dill(where: str, value: Any, problem: Exception | None) -> bytes:
    try:
        import dill
    except ImportError:
        reason = str(problem or "it is defined in the script that runs, and in no module")
        raise InputError(
            f"{where}: pickle cannot write it down ({reason}); dill may: "
            "pip install 'airflow-mlbatch[publish]'"
        ) from None
    try:
        return bytes(dill.dumps(value, protocol=4, recurse=True))
    except Exception as error:
        raise InputError(f"{where}: it cannot be serialized: {error}") from None
