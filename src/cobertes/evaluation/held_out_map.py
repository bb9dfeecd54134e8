"""Logits of held-out blocks as the map has them: same windows, overlap and blending.

    windows that finish held-out pixels, or overlap them ──> model ──> blended in the map's order ──> evaluated

With blending "interior" nothing is blended, and windows that only overlap held-out blocks are left out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cobertes.geo.blending import INTERIOR, Blender, WindowPlan
from cobertes.geo.windows import TiledWindow, Window
from cobertes.learn.inference import HeldOut
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.split import Part


class HeldOutMap:
    """Window plans of the maps of all areas, and the logits of held-out windows blended by them.

    size, overlap  of the windows, in pixels
    blend          interior, cosine or gaussian (`geo.blending`)
    Raises SettingsError as `WindowPlan.of`.
    """

    def __init__(self, dataset: LabelledDataset, size: int, overlap: int, blend: str) -> None:
        self.dataset, self.blends = dataset, blend != INTERIOR
        self.plans = {
            name: WindowPlan.of(dataset.areas[name].shape, size, overlap, blend) for name in dataset.split.areas
        }
        self._positions = {
            name: tuple({window.start: i for i, window in enumerate(axis)} for axis in (plan.rows, plan.cols))
            for name, plan in self.plans.items()
        }
        self.reset()

    def reset(self) -> None:
        """Clear the blending zones before another pass."""
        self._blenders = {name: Blender(plan) for name, plan in self.plans.items()}
        self._last: tuple[str, int, int] | None = None
        self._block: Tensor | None = None

    def windows(self, part: Part) -> list[HeldOut]:
        """Windows that contribute to the blocks of a part of the split, in the map's order; one per interior.

        The interior of a window that only contributes to other windows' blocks has no pixels.
        """
        windows: list[HeldOut] = []
        for name, plan in self.plans.items():
            area = self.dataset.split.areas[name]
            interiors = {
                (row, col): area.intersections(plan.block(row, col), part)
                for row in range(len(plan.rows))
                for col in range(len(plan.cols))
            }
            for (row, col), own in interiors.items():
                window, block = plan.window(row, col), plan.block(row, col)
                only_contributes = not own and any(interiors[other] for other in plan.contributes_to(row, col))
                own_or_empty = [Window(block.row, block.col, 0, 0)] if only_contributes else own
                windows += [(name, TiledWindow(window, interior)) for interior in own_or_empty]
        return windows

    def extent(self, item: HeldOut) -> Window:
        """Pixels that a window contributes to."""
        return self.plans[item[0]].extent(*self._position(item))

    def blend(self, items: Sequence[HeldOut], logits: Tensor) -> Tensor:
        """Logits (B, K, H, W) of windows in the order of `windows`; in their blocks, those of the map."""
        if not self.blends:
            return logits
        logits = logits.float().cpu().clone()
        for item, values in zip(items, logits, strict=True):
            plan, (row, col) = self.plans[item[0]], self._position(item)
            if self._last != (item[0], row, col):  # the parts of a block follow each other
                pixels = values.permute(1, 2, 0).contiguous().numpy()
                block = self._blenders[item[0]].add(row, col, pixels)
                self._last, self._block = (item[0], row, col), torch.from_numpy(block).permute(2, 0, 1)
            values[:, *plan.block(row, col).slices_in(plan.window(row, col))] = self._block
        return logits

    def _position(self, item: HeldOut) -> tuple[int, int]:
        """Row and column of a window in its plan."""
        (rows, cols), window = self._positions[item[0]], item[1].window
        return rows[window.row], cols[window.col]
