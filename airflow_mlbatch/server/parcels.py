"""What a worker of a cluster needs before it can score: services, models, and the rest of their files.

Law: the id of a parcel stands for its content. A parcel never changes, and is used only when all of
its bytes have arrived.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol.services import Service
from airflow_mlbatch.server.programs import Program, read_program, write_program
from airflow_mlbatch.server.registry import is_file_source
from airflow_mlbatch.server.wire import Described

__all__ = ["Inventory", "Manifest", "Parcel", "ParcelShelf", "built_in_parcel", "program_parcel"]

_MANIFEST = "manifest.json"
_PIECE_BYTES = 8 * 1024 * 1024


class Inventory(msgspec.Struct, frozen=True):
    """One file of a parcel; its path is relative and has slashes."""

    path: str
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a parcel holds.

    :param program: a published service as the database keeps it; empty for services of modules
    :param sources: modules, and files of the parcel, that publish services
    :param services: what these have to publish
    """

    id: str
    files: list[Inventory]
    program: bytes = b""
    sources: list[str] = []
    services: list[Described] = []


@dataclass(frozen=True)
class Parcel:
    """A manifest, and where its files lie on this machine."""

    manifest: Manifest
    folder: Path

    @property
    def id(self) -> str:
        """Stands for its content."""
        return self.manifest.id

    def pieces(self) -> Iterator[tuple[str, bytes]]:
        """Path and bytes, one piece after the other, each file with at least one."""
        for one in self.manifest.files:
            with (self.folder / one.path).open("rb") as file:
                piece = file.read(_PIECE_BYTES)
                while True:
                    yield one.path, piece
                    piece = file.read(_PIECE_BYTES)
                    if not piece:
                        break


def program_parcel(program: Program) -> Parcel:
    """A published service, with its objects."""
    files = [Inventory(one.file, one.size, one.sha256) for one in program.objects]
    return Parcel(Manifest(program.id, files, program=write_program(program)), program.folder)


def built_in_parcel(
    sources: Sequence[str], more: Iterable[Path], services: Iterable[Service], folder: Path
) -> Parcel:
    """The services of modules and files.

    :param more: files and folders beside the files of the services: models, modules, tables
    :param services: what the sources publish
    :param folder: takes a copy of the files, so that what is sent does not change
    :raises InputError: names the path that cannot be used
    """
    roots: dict[Path, str] = {}
    sent: list[str] = []
    folder.mkdir(parents=True)
    for source in sources:
        if not is_file_source(source):
            sent.append(source)
            continue
        path = Path(source).resolve()
        root = roots.setdefault(path.parent, str(len(roots)))
        sent.append(f"{root}/{path.name}")
        _copy(path, folder / root / path.name)
    for path in more:
        _copy_beside(path.resolve(), roots, folder)
    files = [_listed(path, folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    described = [Described.of(service) for service in services]
    unnamed = Manifest("", files, sources=sent, services=described)
    digest = hashlib.sha256(msgspec.json.encode(unnamed)).hexdigest()[:32]
    return Parcel(msgspec.structs.replace(unnamed, id=f"services-{digest}"), folder)


def _copy_beside(path: Path, roots: dict[Path, str], folder: Path) -> None:
    for root, name in roots.items():
        if path.is_relative_to(root) and path != root:
            _copy(path, folder / name / path.relative_to(root))
            return
    expected = " or ".join(map(str, roots)) or "a file of services to be beside"
    raise InputError(f"dask file {path}: expected something inside of {expected}")


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.is_dir():
            shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(path, target)
    except OSError as error:
        raise InputError(f"{path} cannot be sent to the cluster: {error}") from None


def _listed(path: Path, folder: Path) -> Inventory:
    return Inventory(path.relative_to(folder).as_posix(), path.stat().st_size, _sha256(path))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


class ParcelShelf:
    """The parcels that a worker has."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, parcel_id: str) -> bool:
        """Whether it is here, whole."""
        return (self._folder / parcel_id / _MANIFEST).is_file()

    def keep(self, parcel_ids: Collection[str]) -> None:
        """Throw the others away."""
        if self._folder.is_dir():
            for name in set(os.listdir(self._folder)) - set(parcel_ids):
                shutil.rmtree(self._folder / name, ignore_errors=True)

    def begin(self, parcel_id: str) -> str:
        """Prepare to take a parcel; returns the word under which its pieces come."""
        word = f"{parcel_id}.{uuid.uuid4().hex}"
        (self._folder / word).mkdir(mode=0o700, parents=True)
        return word

    def add(self, word: str, path: str, piece: bytes) -> None:
        """Take the next piece of a file."""
        target = self._folder / word / _safe(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("ab") as file:
            file.write(piece)

    def finish(self, word: str, manifest: Manifest) -> None:
        """Make a parcel available.

        :raises InputError: what has come is not what was sent
        """
        folder = self._folder / word
        for one in manifest.files:
            path = folder / _safe(one.path)
            found = path.stat().st_size if path.is_file() else None
            if found != one.size or _sha256(path) != one.sha256:
                raise InputError(
                    f"file {one.path!r}: found {found} bytes, expected {one.size} with the checksum "
                    f"{one.sha256}"
                )
        (folder / _MANIFEST).write_bytes(msgspec.json.encode(manifest))
        if not self.has(manifest.id):
            os.replace(folder, self._folder / manifest.id)

    def open(self, parcel_id: str) -> tuple[Manifest, Path]:
        """Its manifest, and where its files lie.

        :raises InputError: it is not here
        """
        folder = self._folder / parcel_id
        try:
            manifest = msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=Manifest)
        except (OSError, ValueError):
            # Out of the way, so that they can come again.
            shutil.rmtree(folder, ignore_errors=True)
            raise InputError("the files of the services are not on this worker any more") from None
        return manifest, folder


def opened_program(manifest: Manifest, folder: Path) -> Program | None:
    """The published service of a parcel; ``None`` where it holds modules."""
    return read_program(manifest.id, manifest.program, folder) if manifest.program else None


def _safe(path: str) -> PurePosixPath:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts:
        raise InputError(f"file {path!r}: expected a path within the parcel")
    return pure
