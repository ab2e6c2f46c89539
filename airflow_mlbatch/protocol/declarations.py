"""The declarations of a service, checked where somebody writes them down.

Law: a mistake is named with the service and the word that is wrong, before anything is published.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol.services import Parameter
from airflow_mlbatch.protocol.types import TYPES, TypeName, type_for_class, type_name

__all__ = ["check_service_name", "declared_artifacts", "declared_parameters", "plain_text"]

_LONGEST_FILE_NAME = 255


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


def _parameters(where: str, what: str, declared: Mapping[str, Any]) -> Iterable[Parameter]:
    if not isinstance(declared, Mapping):
        raise InputError(
            f"{where}, {what}: found {declared!r:.80}, expected a dict of names and types"
        )
    for name, kind in ((plain_text(name), kind) for name, kind in declared.items()):
        # JSON has to carry the name without escapes: that is what makes reading records quick.
        is_plain = isinstance(name, str) and name.strip() and name.isprintable()
        if not is_plain or set(name) & set('"\\'):
            raise InputError(
                f"{where}, {what}: found the name {name!r:.80}, expected printable text"
            )
        yield Parameter(name, _type(f"{where}, {what}, {name!r}", kind))


def plain_text(word: Any) -> Any:
    """Text of a subclass of ``str`` as a plain ``str``.

    ``numpy.str_`` is the usual one: the names of scikit-learn's data sets are made of it. Nothing
    but a plain ``str`` can be sent to the server.
    """
    return str.__str__(word) if isinstance(word, str) else word


def _type(where: str, kind: Any) -> TypeName:
    kind = plain_text(kind)
    if isinstance(kind, str) and kind in TYPES:
        return type_name(kind)
    if isinstance(kind, type):
        found = type_for_class(kind)
        if found is not None:
            return found
    words = ", ".join((*TYPES, "bool", "int", "float", "str", "list", "dict"))
    raise InputError(f"{where}: found type {kind!r:.80}, expected one of {words}")


def _artifact(where: str, name: Any) -> str:
    name = plain_text(name)
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
