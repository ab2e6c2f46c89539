"""A published Python service inside its worker process.

Law: this is the only place where pickled data is opened, and it runs only in a worker that belongs to
the service, so that whatever the data does happens to nobody else.

The code runs in the module ``__main__``, where pickled functions and classes look for what they need.
The objects of the snapshot are its globals, and so is what ``initCode`` has made; each record finds
them as they were, with its inputs beside them.
"""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.server.programs import Program, StoredObject

__all__ = ["PythonProgram"]

_MAIN = "__main__"


class PythonProgram:
    """The code and the objects of a Python service.

    :raises InputError: an object cannot be opened, or the code is none; names which
    """

    def __init__(self, program: Program) -> None:
        service = program.service
        self._outputs = [parameter.name for parameter in service.outputs]
        inputs = {parameter.name for parameter in service.inputs}
        module = types.ModuleType(_MAIN)
        sys.modules[_MAIN] = module
        self._globals = module.__dict__
        for stored in program.objects:
            self._globals[stored.name] = _opened(stored, program.folder / stored.file)
        self._code = _compiled("code", service.code)
        init_code = _compiled("initCode", service.init_code)
        # The vendor's documents run it before each request, its notebook once. Once is enough,
        # unless it reads what only a record brings.
        self._init_each = None
        before = dict(self._globals)
        try:
            exec(init_code, self._globals)
        except NameError as error:
            if error.name not in inputs:
                raise _failed("initCode", error) from error
            self._init_each = init_code
            self._globals.clear()
            self._globals.update(before)
        except BaseException as error:
            raise _failed("initCode", error) from error
        self._before = dict(self._globals)

    def run(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Run the code for a record.

        :return: the declared outputs that the code has set
        """
        found = self._globals
        try:
            found.update(values)
            if self._init_each is not None:
                exec(self._init_each, found)
            exec(self._code, found)
            return {name: found[name] for name in self._outputs if name in found}
        finally:
            # An output that the next record does not set must not be taken for its own.
            found.clear()
            found.update(self._before)


def _compiled(what: str, text: str) -> types.CodeType:
    try:
        return compile(text, f"<{what}>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _failed(what, error) from error


def _failed(what: str, error: BaseException) -> InputError:
    return InputError(f"{what}: {type(error).__name__}: {error}")


# --- objects -------------------------------------------------------------------------------------


class _MadeByDillError(Exception):
    """Plain pickle cannot open it."""


class _PlainUnpickler(pickle.Unpickler):
    """Opens what pickle has made, and says so when it meets what only dill understands."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "dill" or (module, name) == ("__builtin__", _MAIN):
            raise _MadeByDillError
        return super().find_class(module, name)


def _opened(stored: StoredObject, path: Path) -> Any:
    try:
        with path.open("rb") as file:
            try:
                return _PlainUnpickler(file).load()
            except _MadeByDillError:
                file.seek(0)
                return _opened_by_dill(stored, file)
    except InputError:
        raise
    except BaseException as error:
        raise _failed(f"object {stored.name!r}", error) from error


def _opened_by_dill(stored: StoredObject, file: Any) -> Any:
    try:
        import dill
    except ImportError:
        raise InputError(
            f"object {stored.name!r}: it was made by dill, which this machine does not have: "
            "pip install 'airflow-mlbatch[publish]'"
        ) from None
    return dill.load(file)
