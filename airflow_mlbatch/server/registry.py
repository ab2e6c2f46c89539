"""The ``@service`` decorator and the table of services it fills.

Law: a declaration is checked where it is made, so that a services module with a mistake in it does
not load, and says which service and which word is wrong.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol.declarations import (
    check_service_name,
    declared_artifacts,
    declared_parameters,
    plain_text,
)
from airflow_mlbatch.protocol.services import Parameter, Service

__all__ = [
    "DEMO_SERVICES",
    "Published",
    "is_file_source",
    "load_services",
    "service",
]

DEMO_SERVICES = "airflow_mlbatch.demo.services"

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Published:
    """A function and the description it is published under."""

    function: Callable[..., Any]
    description: Service


_published: dict[tuple[str, str], Published] = {}


def service(
    name: str,
    version: str,
    *,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    artifacts: Sequence[str] = (),
    description: str = "",
    vectorized: bool = False,
) -> Callable[[F], F]:
    """Publish a function as a web service.

    The function is called once for each record, with the inputs as keyword arguments: Python
    values by declared type, a ``data.frame`` as a dict of columns, a missing value as ``None``. It
    runs in a worker process, in an empty folder of its own; the files named in ``artifacts`` are
    kept when it leaves them there. With one output it may return the bare value, with several it
    returns a dict. NumPy and pandas values are accepted by declared type.

    :param name: any text that can stand in a URL
    :param version: any text that can stand in a URL
    :param inputs: name and type of each input; a type is ``bool``, ``int``, ``float``, ``str``,
        ``list``, ``dict``, a NumPy scalar type, ``numpy.ndarray``, ``pandas.DataFrame`` or one of
        the contract's words
        (``logical``, ``integer``, ``numeric``, ``character``, ``vector``, ``matrix``,
        ``data.frame``)
    :param outputs: name and type of each output
    :param artifacts: names of the files that the function may leave in its folder
    :param vectorized: call the function once for many records. It gets one ``pandas.DataFrame`` with
        the inputs as columns and a row for each record, numbered from 0, and returns the outputs as
        columns of the same length and order: a ``DataFrame``, a dict of columns or, with one output,
        the bare column. Such a service has no artifacts
    :raises InputError: names the service and the word of the declaration that cannot be used
    """
    where = f"service {name!r} version {version!r}"
    name, version, description = map(plain_text, (name, version, description))
    check_service_name(where, name, version)
    if not isinstance(description, str):
        raise InputError(f"{where}: found description {description!r:.80}, expected text")
    takes = declared_parameters(where, "inputs", inputs)
    gives = declared_parameters(where, "outputs", outputs)
    files = declared_artifacts(where, artifacts)
    if not isinstance(vectorized, bool):
        raise InputError(f"{where}: found vectorized {vectorized!r:.80}, expected True or False")
    if vectorized and files:
        raise InputError(
            f"{where}: found artifacts and vectorized=True, expected one of them: a file that is left "
            "by a call for many records belongs to none of them"
        )

    def publish(function: F) -> F:
        _check_signature(where, function, takes, vectorized)
        operation_id = getattr(function, "__name__", type(function).__name__)
        about = description or inspect.getdoc(function) or ""
        shape = Service(
            name=name,
            version=version,
            inputs=takes,
            outputs=gives,
            artifacts=files,
            operation_id=_sendable(operation_id),
            runtime_type="Python",
            description=_sendable(about),
            is_vectorized=vectorized,
        )
        known = _published.get((name, version))
        if known is not None and _origin(known.function) != _origin(function):
            raise InputError(
                f"{where}: published twice, by {_origin(known.function)} and {_origin(function)}"
            )
        _published[name, version] = Published(function, shape)
        return function

    return publish


def load_services(sources: Iterable[str]) -> dict[tuple[str, str], Published]:
    """Import the modules and files that publish services.

    :param sources: dotted module names, or paths of Python files
    :return: the table of services, by name and version
    :raises InputError: names the source that cannot be used, and why
    """
    for source in sources:
        try:
            _import_source(source)
        except InputError:
            raise
        except ModuleNotFoundError as error:
            if error.name is not None and (
                source == error.name or source.startswith(f"{error.name}.")
            ):
                raise InputError(f"services {source!r}: there is no such module or file") from None
            raise InputError(f"services {source!r}: {type(error).__name__}: {error}") from error
        except (Exception, SystemExit) as error:
            raise InputError(f"services {source!r}: {type(error).__name__}: {error}") from error
    if not _published:
        searched = ", ".join(sources) or "nothing was named"
        raise InputError(f"services: found no function marked with @service ({searched})")
    return dict(_published)


def is_file_source(source: str) -> bool:
    """Whether a source is the path of a file, and not the name of a module."""
    return source.endswith(".py") or os.sep in source or (os.altsep or os.sep) in source


def _import_source(source: str) -> None:
    if not is_file_source(source):
        importlib.import_module(source)
        return
    path = os.path.abspath(source)
    if not os.path.isfile(path):
        raise InputError(f"services {source!r}: there is no such file")
    # Its neighbours can be imported, as they could be were the file run as a script.
    folder, stem = os.path.dirname(path), os.path.splitext(os.path.basename(path))[0]
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"services {source!r}: found no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(stem, module)
    spec.loader.exec_module(module)


def _check_signature(
    where: str, function: Callable[..., Any], takes: Sequence[Parameter], vectorized: bool
) -> None:
    if inspect.iscoroutinefunction(function):
        raise InputError(f"{where}: found a coroutine function, expected a plain one")
    try:
        signature = inspect.signature(function)
        if vectorized:
            signature.bind(None)
        else:
            signature.bind(**{parameter.name: None for parameter in takes})
    except TypeError as error:
        arguments = (
            "a DataFrame" if vectorized else ", ".join(parameter.name for parameter in takes)
        )
        raise InputError(
            f"{where}: the function cannot be called with ({arguments}): {error}"
        ) from None
    except ValueError:
        # Some built-in functions tell no signature; the first record will show.
        return


def _origin(function: Callable[..., Any]) -> str:
    # The file, not the module: two files of one name in two folders are one module's name.
    code = getattr(function, "__code__", None)
    place = getattr(code, "co_filename", None) or getattr(function, "__module__", "")
    return f"{place}:{getattr(function, '__qualname__', repr(function))}"


def _sendable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
