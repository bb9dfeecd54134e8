"""Files of a product: a folder, a zip or a tar alike, listed and read by name; GDAL reads the pixels in place."""

import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from cobertes.errors import InputFileError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
MOST_FILES = 20_000
"""A folder with more is no product: it is not listed to its end."""
DEEPEST = 6
"""Levels below a folder that are looked at: GRANULE/L2A_.../IMG_DATA/R10m and two more."""


@dataclass(frozen=True)
class ProductFiles:
    """The files under ``path``: ``names`` with forward slashes, relative to it."""

    path: Path
    names: tuple[str, ...]
    prefix: str
    """Prefix that GDAL needs before a name: ``/vsizip/FILE.zip/``, ``FOLDER/``."""
    _read: Callable[[str], bytes]

    def gdal_path(self, name: str) -> str:
        """A file as GDAL opens it."""
        return f"{self.prefix}{name}"

    def read(self, name: str) -> bytes:
        """The content of a small file. Raises InputFileError."""
        try:
            return self._read(name)
        except (OSError, KeyError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            raise InputFileError(
                f"can't read {name} in {self.path}: {error}. The product may be damaged: fetch it again."
            ) from error

    def xml(self, name: str) -> ElementTree.Element:
        """The root of an XML file. Raises InputFileError where it is none."""
        try:
            return ElementTree.fromstring(self.read(name))
        except ElementTree.ParseError as error:
            raise InputFileError(
                f"{name} in {self.path} is no whole XML ({error}): fetch the product again."
            ) from error

    def ending(self, *ends: str) -> list[str]:
        """Names that end so, whatever the case, in order."""
        return [name for name in self.names if name.lower().endswith(tuple(end.lower() for end in ends))]

    def matches(self, find: Callable[[str], re.Match[str] | None]) -> list[tuple[str, re.Match[str]]]:
        """Names in whose last part ``find`` finds something (``PATTERN.match``), with the match."""
        found = [(name, find(PurePosixPath(name).name)) for name in self.names]
        return [(name, match) for name, match in found if match]

    def only_product(self, ids: Iterable[str], kind: str, advice: str) -> str | None:
        """Id of the only product, None without one. Raises InputFileError for several."""
        different = sorted(set(ids))
        if len(different) > 1:
            raise InputFileError(
                f"{self.path} holds {len(different)} {kind} products ({', '.join(different[:2])}). {advice} in "
                f"one CRS are read as a mosaic."
            )
        return different[0] if different else None

    def named(self, pattern: str) -> list[str]:
        """Names whose last part matches a shell pattern, whatever the case."""
        return [name for name in self.names if PurePosixPath(name.lower()).match(pattern.lower())]


def is_archive(path: Path) -> bool:
    """True for the names of zip and tar files."""
    return path.suffix.lower() == ".zip" or path.name.lower().endswith(TAR_SUFFIXES)


def open_files(path: Path) -> ProductFiles:
    """List a folder, zip or tar. Raises InputFileError for a damaged archive."""
    try:
        if path.is_dir():
            return open_folder(path, tuple(_list_folder(path)))
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = tuple(sorted(item.filename for item in archive.infolist() if not item.is_dir()))
            return ProductFiles(path, names, f"/vsizip/{path}/", lambda name: _read_zip(path, name))
        with tarfile.open(path) as archive:
            names = tuple(sorted(item.name for item in archive.getmembers() if item.isfile()))
        return ProductFiles(path, names, f"/vsitar/{path}/", lambda name: _read_tar(path, name))
    except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise InputFileError(f"can't read {path}: {error}. It may be truncated: fetch it again.") from error


def open_folder(path: Path, names: tuple[str, ...]) -> ProductFiles:
    """Some of the files of a folder."""
    return ProductFiles(path, names, f"{path}{os.sep}", lambda name: (path / name).read_bytes())


def _list_folder(path: Path) -> list[str]:
    names: list[str] = []
    for folder, below, files in os.walk(path):
        depth = len(Path(folder).relative_to(path).parts)
        if depth >= DEEPEST:
            below.clear()
        names += [Path(folder, file).relative_to(path).as_posix() for file in files]
        if len(names) > MOST_FILES:
            break
    return sorted(names)


def _read_zip(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def _read_tar(path: Path, name: str) -> bytes:
    with tarfile.open(path) as archive:
        file = archive.extractfile(name)
        return b"" if file is None else file.read()


def texts(root: ElementTree.Element, tag: str) -> list[str]:
    """Texts of all elements of a name, without their blanks, whatever their namespace."""
    return [(element.text or "").strip() for element in root.iter() if element.tag.rpartition("}")[2] == tag]


def text_of(root: ElementTree.Element, tag: str) -> str | None:
    """Text of the first element of a name, None if there is none."""
    return next(iter(texts(root, tag)), None)


def elements(root: ElementTree.Element, tag: str) -> list[ElementTree.Element]:
    """All elements of a name, whatever their namespace."""
    return [element for element in root.iter() if element.tag.rpartition("}")[2] == tag]
