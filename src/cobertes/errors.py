"""Every error that cobertes raises on purpose, in one tree.

    CobertesError
    ├── SettingsError        (ValueError)         project.toml or an option asks for something impossible
    ├── InputFileError       (OSError)            a file is missing, unreadable or truncated
    ├── GridMismatchError    (ValueError)         two rasters do not lie on the same ground or grid
    ├── BandMismatchError    (ValueError)         a scene lacks bands, or has others
    ├── LegendError          (ValueError)         an unknown class, code or legend
    ├── UnknownCodesError    (ValueError)         a reference map holds codes outside the legend
    ├── SplitError           (ValueError)         the area can't be split into training and validation
    ├── NoTilesError         (ValueError)         no tile is left to learn from
    ├── TrainingError        (RuntimeError)       training can't go on
    ├── ModelFileError       (ValueError)         a model file is damaged, foreign or does not fit the scene
    ├── OutputExistsError    (FileExistsError)    a file would be overwritten
    ├── ClusterError         (ConnectionError)    a Ray cluster can't be reached, or loses what it computes
    ├── DeviceMemoryError    (MemoryError)        a GPU has too little memory left
    └── StorageError         (OSError)            a disk is full or a folder can't be written

A message states what was found, what was needed and the way out. Each class also inherits the builtin error that
a caller would expect.
"""

import difflib
from collections.abc import Iterable


class CobertesError(Exception):
    """Something the user can mend; the command line prints it as one line and exits with 2."""


class SettingsError(CobertesError, ValueError):
    """A project file or an option asks for something impossible."""


class InputFileError(CobertesError, OSError):
    """An input file is missing, unreadable or truncated."""


class GridMismatchError(CobertesError, ValueError):
    """Two rasters that belong together do not lie on the same ground or grid."""


class BandMismatchError(CobertesError, ValueError):
    """A scene does not have the bands that the settings or the model name."""


class LegendError(CobertesError, ValueError):
    """A legend, class or code is unknown or contradicts itself."""


class UnknownCodesError(CobertesError, ValueError):
    """A reference map holds codes that its legend and crosswalk do not cover."""


class SplitError(CobertesError, ValueError):
    """The ground can't be split into training and validation blocks as asked."""


class NoTilesError(CobertesError, ValueError):
    """After all filters no tile is left to learn from."""


class TrainingError(CobertesError, RuntimeError):
    """Training can't start or go on."""


class ModelFileError(CobertesError, ValueError):
    """A model file is damaged, of another program, or made for other scenes."""


class OutputExistsError(CobertesError, FileExistsError):
    """An output exists and overwriting was not asked for."""


class ClusterError(CobertesError, ConnectionError):
    """A Ray cluster can't be reached, or what it computes is lost again and again. What is finished is kept."""


class DeviceMemoryError(CobertesError, MemoryError):
    """A GPU has too little memory left for a batch."""


class StorageError(CobertesError, OSError):
    """A disk is full or a folder can't be written."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Hint for a misspelt name: `` Did you mean 'water'?`` with a leading space, or the list of known names."""
    names = sorted(str(k) for k in known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Known: {', '.join(names)}." if names else ""
