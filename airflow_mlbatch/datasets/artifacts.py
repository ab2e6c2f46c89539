"""Where an artifact goes below its destination, whatever the server calls it.

Law: a name from the server never leaves the destination and never overwrites another artifact, on
any file system, also one that takes no notice of case.

- A name that points elsewhere is refused: with a separator, ``.`` or ``..``, a drive letter, NUL, or
  nothing at all.
- A name that some file system cannot keep (too long, a device such as ``CON``, with control
  characters or one of ``<>:"|?*``, with a dot or a space at its end, not in Unicode's composed form)
  becomes a safe one, which is the same each time and ends in a checksum of the original:
  ``CON~3f9a1c2b``, ``a_b~5d1e0f77.png``.
- A name that differs from another one of its record only in case: see :meth:`ArtifactNames.places`
  and :meth:`ArtifactNames.place`.
"""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from collections.abc import Iterable

from airflow_mlbatch.errors import InputError, UnsafeNameError

__all__ = ["DEFAULT_TEMPLATE", "ArtifactNames", "safe_name"]

DEFAULT_TEMPLATE = "{index}/{file_name}"

# File systems stop at 255 bytes; what stages a file adds a mark to its name.
_MAX_BYTES = 180
_MAX_SUFFIX_BYTES = 20
_CHECKSUM_DIGITS = 8
_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$", "clock$"]
    + [f"{device}{digit}" for device in ("com", "lpt") for digit in "0123456789¹²³"]
)
_DRIVE = re.compile(r"^[A-Za-z]:")
_UNKEPT = re.compile(r'[<>:"|?*\x00-\x1f\x7f-\x9f]')
_WIDTH = re.compile(r"^0?[1-9][0-9]?d?$")
_KNOWN_FIELDS = ("index", "file_name")


def safe_name(file_name: str) -> str:
    """A server's file name as one that every file system keeps, and that is no path.

    :raises UnsafeNameError: the name points elsewhere
    """
    if not file_name.strip():
        raise UnsafeNameError(f"artifact: found the name {file_name!r:.80}, expected a file name")
    reason = _why_elsewhere(file_name)
    if reason is not None:
        raise UnsafeNameError(
            f"artifact: found the name {file_name!r:.120} ({reason}), expected a plain file name"
        )
    name = unicodedata.normalize("NFC", file_name)
    name = "".join("_" if _is_unprintable(letter) else letter for letter in name)
    name = _UNKEPT.sub("_", name).rstrip(". ").lstrip(" ")
    is_kept = (
        name == file_name
        and len(name.encode()) <= _MAX_BYTES
        # Windows takes CON.txt for the console too. A name with a mark such as ours could be taken
        # for one that was made here.
        and name.split(".")[0].rstrip(" ").casefold() not in _DEVICES
        and not _has_mark(name)
        and not name.startswith(".mlbatch")
    )
    return name if is_kept else _marked(name, file_name)


def _why_elsewhere(name: str) -> str | None:
    if "/" in name or "\\" in name:
        return "a separator in it"
    if name in (".", ".."):
        return "a folder"
    if "\x00" in name:
        return "NUL in it"
    return "a drive letter" if _DRIVE.match(name) else None


def _is_unprintable(letter: str) -> bool:
    # Surrogates cannot be encoded; format characters (Cf) can turn the reading direction around.
    return unicodedata.category(letter) in ("Cs", "Cf", "Cc")


def _has_mark(name: str) -> bool:
    return re.search(rf"~[0-9a-f]{{{_CHECKSUM_DIGITS}}}(\.|$)", name, re.IGNORECASE) is not None


def _marked(name: str, original: str) -> str:
    """``name`` with a checksum of ``original`` before its suffix, cut to what is kept."""
    digest = hashlib.sha256(original.encode("utf-8", "surrogatepass")).hexdigest()
    stem, dot, suffix = name.rpartition(".")
    if not dot or not stem or len(suffix.encode()) > _MAX_SUFFIX_BYTES:
        stem, dot, suffix = name, "", ""
    if stem.split(".")[0].rstrip(" ").casefold() in _DEVICES:
        # The device is what stands before the first dot, so the mark goes there too.
        stem, _, rest = stem.partition(".")
        suffix = f"{rest}.{suffix}" if rest else suffix
        dot = "." if suffix else ""
    mark = f"~{digest[:_CHECKSUM_DIGITS]}{dot}{suffix}"
    room = max(_MAX_BYTES - len(mark.encode()), 0)
    stem = stem.encode()[:room].decode("utf-8", "ignore")
    return f"{stem}{mark}" if len(mark.encode()) <= _MAX_BYTES else f"~{digest[:_CHECKSUM_DIGITS]}"


class ArtifactNames:
    """Places below one destination for the artifacts of one execution.

    :param template: from ``{index}`` (the zero-based record, also with a width: ``{index:06d}``) and
        ``{file_name}``; relative, without ``..``
    :param reserved: a place that is no artifact's
    :raises InputError: the template is something else
    """

    def __init__(self, template: str = DEFAULT_TEMPLATE, *, reserved: str | None = None) -> None:
        check_template(template)
        self._template = template
        self._reserved = None if reserved is None else _folded(reserved)
        self._taken: dict[str, tuple[int, str]] = {}

    def place(self, index: int, file_name: str) -> str:
        """Where one artifact goes, relative to the destination.

        :raises UnsafeNameError: the name points elsewhere, or another artifact has this place
            already, on a file system that takes no notice of case
        """
        return self._take(index, file_name, safe_name(file_name))

    def places(self, index: int, file_names: Iterable[str]) -> dict[str, str]:
        """Where all artifacts of one record go: ``{file name: place}``.

        Of names that differ only in case, the first in alphabetical order stays as it is and the
        others get a mark: the same in each attempt, whatever the order of the list.

        :raises UnsafeNameError: as for :meth:`place`
        """
        listed = list(dict.fromkeys(file_names))
        chosen: dict[str, str] = {}
        folded: set[str] = set()
        for name in sorted(listed):
            safe = safe_name(name)
            if _folded(safe) in folded:
                safe = _marked(safe, name)
            folded.add(_folded(safe))
            chosen[name] = self._take(index, name, safe)
        return {name: chosen[name] for name in listed}

    def _take(self, index: int, file_name: str, safe: str) -> str:
        place = self._template.format(index=index, file_name=safe)
        if _folded(place) == self._reserved:
            raise UnsafeNameError(
                f"artifact {file_name!r:.120} of record {index}: found its place {place!r}, which is "
                "that of the manifest; expected another, such as path_template="
                f"{DEFAULT_TEMPLATE!r} gives"
            )
        owner = self._taken.setdefault(_folded(place), (index, file_name))
        if owner != (index, file_name):
            raise UnsafeNameError(
                f"artifact {file_name!r:.120} of record {index}: found its place {place!r} taken by "
                f"{owner[1]!r:.120} of record {owner[0]}, expected a place of its own; names that "
                "differ only in case share one on some file systems"
            )
        return place


def check_template(template: str) -> None:
    """:raises InputError: the template leaves the destination, or has fields that are not known"""
    expected = "expected a relative path of {index} and {file_name}, such as {index}/{file_name}"
    if not isinstance(template, str):
        raise InputError(f"path_template: found {template!r:.80}, {expected}")
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"path_template: found {template!r:.120} ({error}), {expected}") from None
    fields = [(name, spec, conversion) for _, name, spec, conversion in pieces if name is not None]
    for name, spec, conversion in fields:
        is_plain = conversion is None and (
            not spec or (name == "index" and _WIDTH.match(spec) is not None)
        )
        if name not in _KNOWN_FIELDS or not is_plain:
            raise InputError(
                f"path_template: found the field {name!r} in {template!r:.120}, {expected}"
            )
    if "file_name" not in [name for name, _, _ in fields]:
        raise InputError(f"path_template: found no {{file_name}} in {template!r:.120}, {expected}")
    # Only now: a width of a billion would have been carried out.
    parts = template.format(index=0, file_name="x").split("/")
    if "\\" in template or "\x00" in template or _DRIVE.match(template) or "://" in template:
        raise InputError(f"path_template: found {template!r:.120}, {expected}")
    if any(part in ("", ".", "..") for part in parts):
        raise InputError(f"path_template: found {template!r:.120}, {expected}")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
