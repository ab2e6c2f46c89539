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
from airflow_mlbatch.protocol.services import Parameter, Service
from airflow_mlbatch.protocol.types import TYPES, TypeName, type_for_class, type_name

__all__ = [
    "DEMO_SERVICES",
    "Published",
    "check_service_name",
    "declared_artifacts",
    "declared_parameters",
    "is_file_source",
    "load_services",
    "service",
]

DEMO_SERVICES = "airflow_mlbatch.demo.services"

F = TypeVar("F", bound=Callable[..., Any])

_LONGEST_FILE_NAME = 255


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
    :raises InputError: names the service and the word of the declaration that cannot be used
    """
    where = f"service {name!r} version {version!r}"
    name, version, description = map(_plain, (name, version, description))
    check_service_name(where, name, version)
    if not isinstance(description, str):
        raise InputError(f"{where}: found description {description!r:.80}, expected text")
    takes = declared_parameters(where, "inputs", inputs)
    gives = declared_parameters(where, "outputs", outputs)
    files = declared_artifacts(where, artifacts)

    def publish(function: F) -> F:
        _check_signature(where, function, takes)
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
        )
        known = _published.get((name, version))
        if known is not None and _origin(known.function) != _origin(function):
            raise InputError(
                f"{where}: published twice, by {_origin(known.function)} and {_origin(function)}"
            )
        _published[name, version] = Published(function, shape)
        return function

    return publish


def check_service_name(where: str, name: Any, version: Any) -> None:
    """Refuse a name or a version that no URL can carry.

    :param where: what the error begins with
    :raises InputError: it is none
    """
    for what, word in (("name", name), ("version", version)):
        # HTTP clients fold "." and ".." into the path: such a service could not be asked for.
        if not isinstance(word, str) or not word.isprintable() or word in ("", ".", ".."):
            raise InputError(
                f"{where}: found {what} {word!r:.80}, expected text that can stand in a URL"
            )


def declared_parameters(
    where: str, what: str, declared: Mapping[str, Any]
) -> tuple[Parameter, ...]:
    """Check the declared inputs or outputs of a service.

    :param where: what an error begins with
    :param what: ``inputs`` or ``outputs``
    :raises InputError: names the parameter whose name or type cannot be used
    """
    return tuple(_parameters(where, what, declared))


def declared_artifacts(where: str, names: Sequence[str]) -> tuple[str, ...]:
    """Check the declared file names of a service: plain names that stay in their folder.

    :raises InputError: names the one that is not, or says that two are the same
    """
    if isinstance(names, str):
        raise InputError(f"{where}, artifacts: found {names!r:.80}, expected a list of names")
    files = tuple(_artifact(where, file) for file in names)
    if len({file.casefold() for file in files}) < len(files):
        raise InputError(f"{where}: found artifacts of one name, expected different names")
    return files


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
        told = ", ".join(sources) or "nothing was named"
        raise InputError(f"services: found no function marked with @service ({told})")
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


def _parameters(where: str, what: str, declared: Mapping[str, Any]) -> Iterable[Parameter]:
    if not isinstance(declared, Mapping):
        raise InputError(
            f"{where}, {what}: found {declared!r:.80}, expected a dict of names and types"
        )
    for name, kind in ((_plain(name), kind) for name, kind in declared.items()):
        # JSON has to carry the name without escapes: that is what makes reading records quick.
        is_plain = isinstance(name, str) and name.strip() and name.isprintable()
        if not is_plain or set(name) & set('"\\'):
            raise InputError(
                f"{where}, {what}: found the name {name!r:.80}, expected printable text"
            )
        yield Parameter(name, _type(f"{where}, {what}, {name!r}", kind))


def _plain(word: Any) -> Any:
    """Text of a subclass of ``str`` as a plain ``str``.

    ``numpy.str_`` is the usual one: the names of scikit-learn's data sets are made of it. Nothing
    but a plain ``str`` can be sent to the server.
    """
    return str.__str__(word) if isinstance(word, str) else word


def _sendable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _type(where: str, kind: Any) -> TypeName:
    kind = _plain(kind)
    if isinstance(kind, str) and kind in TYPES:
        return type_name(kind)
    if isinstance(kind, type):
        found = type_for_class(kind)
        if found is not None:
            return found
    words = ", ".join((*TYPES, "bool", "int", "float", "str", "list", "dict"))
    raise InputError(f"{where}: found type {kind!r:.80}, expected one of {words}")


def _artifact(where: str, name: Any) -> str:
    name = _plain(name)
    is_plain = (
        isinstance(name, str)
        and name.isprintable()
        and name not in ("", ".", "..")
        and not set(name) & set('/\\:*?"<>|')
        and len(name.encode("utf-8", "replace")) <= _LONGEST_FILE_NAME
    )
    if not is_plain:
        raise InputError(f"{where}, artifacts: found {name!r:.80}, expected a plain file name")
    return str(name)


def _check_signature(where: str, function: Callable[..., Any], takes: Sequence[Parameter]) -> None:
    if inspect.iscoroutinefunction(function):
        raise InputError(f"{where}: found a coroutine function, expected a plain one")
    try:
        inspect.signature(function).bind(**{parameter.name: None for parameter in takes})
    except TypeError as error:
        told = ", ".join(parameter.name for parameter in takes)
        raise InputError(f"{where}: the function cannot be called with ({told}): {error}") from None
    except ValueError:
        # Some built-in functions tell no signature; the first record will show.
        return


def _origin(function: Callable[..., Any]) -> str:
    # The file, not the module: two files of one name in two folders are one module's name.
    code = getattr(function, "__code__", None)
    place = getattr(code, "co_filename", None) or getattr(function, "__module__", "")
    return f"{place}:{getattr(function, '__qualname__', repr(function))}"
