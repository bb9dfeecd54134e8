"""Observation: what a scene shows in a window, as stored, with the conversion into the convention asked for."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.geo.radiometry import Conversion


class Observation(tuple[NDArray[Any], NDArray[np.bool_]]):
    """Values and validity of a window: ``values, valid = observation``.

    values      (bands, height, width) or (height, width, bands), as stored
    valid       (height, width) bool
    conversion  of stored values into those of the model's convention, None if they are the same; normalisation
                takes it up without another pass over the pixels
    """

    conversion: Conversion | None

    def __new__(
        cls, values: NDArray[Any], valid: NDArray[np.bool_], conversion: Conversion | None = None
    ) -> "Observation":
        """Values, validity and conversion together."""
        made = super().__new__(cls, (values, valid))
        made.conversion = conversion
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self[0], self[1], self.conversion

    def converted(self, axis: int) -> NDArray[Any]:
        """Values in the convention asked for; bands lie along ``axis``. As stored where nothing is to convert."""
        return self[0] if self.conversion is None else self.conversion.apply(self[0], axis)
