"""Requests as a server reads them: who logs in, and the records to score.

Law: what does not fit is refused with the record, the field, what was found and what was expected;
a batch is taken whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec

from airflow_mlbatch.errors import InputError, RecordError
from airflow_mlbatch.protocol.documents import NOT_JSON, decoded, lower_keys
from airflow_mlbatch.protocol.types import TYPES, from_wire, json_decoder
from airflow_mlbatch.protocol.values import Misfit

if TYPE_CHECKING:
    from airflow_mlbatch.protocol.services import Parameter

__all__ = ["RecordReader", "read_login", "read_renewal"]


def read_login(body: bytes) -> tuple[str, str]:
    """Read a login request.

    :return: user name and password
    :raises InputError: names what is missing
    """
    item = _request(body, "login request")
    return _text(item, "username", "login request"), _text(item, "password", "login request")


def read_renewal(body: bytes) -> str:
    """Read a request for new tokens and return the refresh token.

    :raises InputError: there is none in it
    """
    return _text(_request(body, "renewal request"), "refreshToken", "renewal request")


def _request(body: bytes, what: str) -> dict[str, Any]:
    try:
        found = decoded(body)
    except NOT_JSON as error:
        # The body is not shown: it may hold a password.
        raise InputError(f"{what}: expected JSON ({error})") from None
    if not isinstance(found, Mapping):
        raise InputError(f"{what}: found {type(found).__name__}, expected an object")
    return lower_keys(found)


def _text(item: Mapping[str, Any], key: str, what: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value:
        raise InputError(f"{what}, field {key!r}: found no text, expected one")
    return value


# --- records -------------------------------------------------------------------------------------

_LIST_DECODER = msgspec.json.Decoder(list[msgspec.Raw])


class RecordReader:
    """Reads records as the server of one service does.

    Records of scalars that fit exactly are checked and read by a class made for the inputs;
    everything else (boxed scalars, nested types, an error that wants words) goes input by input.

    :param inputs: the declared inputs, in order
    """

    def __init__(self, inputs: Sequence[Parameter]) -> None:
        self._inputs = inputs
        self._names = [parameter.name for parameter in inputs]
        self._fields = [f"f{position}" for position in range(len(inputs))]
        record_class = self._scalar_class()
        self._fast = self._fast_list = None
        if record_class is not None:
            self._fast = msgspec.json.Decoder(record_class)
            self._fast_list = msgspec.json.Decoder(list[record_class])  # type: ignore[valid-type]
        self._decode = json_decoder(parameter.type for parameter in inputs)

    def _scalar_class(self) -> Any:
        if any(TYPES[parameter.type].is_nested for parameter in self._inputs):
            return None
        fields = [
            (field, TYPES[parameter.type].wire | None)
            for field, parameter in zip(self._fields, self._inputs, strict=True)
        ]
        try:
            return msgspec.defstruct(
                "Record",
                fields,
                rename=dict(zip(self._fields, self._names, strict=True)),
                forbid_unknown_fields=True,
                gc=False,
            )
        except ValueError:
            # A name with a quote, a backslash or a control character, which the library refuses.
            return None

    def split(self, body: bytes) -> list[msgspec.Raw]:
        """Check the body that starts a batch and cut it into its records, each still JSON text.

        :raises InputError: the body is not a JSON list of objects
        :raises RecordError: names the record, the field, what was found and what was expected
        """
        try:
            records = _LIST_DECODER.decode(body)
        except NOT_JSON as error:
            raise InputError(f"body: expected a JSON list of records ({error})") from None
        for index, record in enumerate(records):
            if self._fast is not None:
                try:
                    self._fast.decode(record)
                    continue
                except NOT_JSON:
                    pass
            self._read(record, f"record {index}")
        return records

    def values(self, record: bytes | msgspec.Raw, where: str = "inputs") -> dict[str, Any]:
        """Read one record as Python values by declared type, in declared order.

        :param where: what the record is called in an error
        :raises InputError: the text is not a JSON object
        :raises RecordError: names the field, what was found and what was expected
        """
        if self._fast is not None:
            try:
                found = self._fast.decode(record)
            except NOT_JSON:
                return self._read(record, where)
            return {
                name: getattr(found, field)
                for name, field in zip(self._names, self._fields, strict=True)
            }
        return self._read(record, where)

    def columns(self, records: bytes) -> dict[str, list[Any]]:
        """Read many records at once: by input, what :meth:`values` reads of each.

        :param records: a JSON list
        :raises InputError: as for :meth:`values`
        """
        if self._fast_list is not None:
            try:
                found = self._fast_list.decode(records)
            except NOT_JSON:
                pass
            else:
                return {
                    name: list(map(attrgetter(field), found))
                    for name, field in zip(self._names, self._fields, strict=True)
                }
        rows = [self._read(record, "inputs") for record in _LIST_DECODER.decode(records)]
        return {name: [row[name] for row in rows] for name in self._names}

    def _read(self, record: bytes | msgspec.Raw, where: str) -> dict[str, Any]:
        try:
            found = self._decode(record)
        except NOT_JSON as error:
            raise InputError(f"{where}: expected a JSON object ({error})") from None
        if not isinstance(found, Mapping):
            raise InputError(f"{where}: found {found!r:.80}, expected an object")
        declared = ", ".join(repr(name) for name in self._names) or "none"
        for name in found:
            if name not in self._names:
                raise RecordError(
                    where, name, "an undeclared input", f"only declared ones ({declared})"
                )
        values = {}
        for parameter in self._inputs:
            if parameter.name not in found:
                there = ", ".join(repr(name) for name in found) or "nothing"
                raise RecordError(
                    where,
                    parameter.name,
                    f"no such field (there are: {there:.300})",
                    "a value for this input",
                )
            try:
                values[parameter.name] = from_wire(parameter.type, found[parameter.name])
            except Misfit as misfit:
                raise RecordError(where, parameter.name, misfit.found, misfit.expected) from None
        return values
