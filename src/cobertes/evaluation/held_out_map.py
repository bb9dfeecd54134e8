"""Held-out ground through the windows that map it, blended as the map is: what is judged is what the map says.

    windows that finish held-out ground, or lend it a zone ──> model ──> blended in the map's order ──> judged

Where windows keep their interiors alone nothing is blended, and no window is needed that only lends.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cobertes.geo.blending import INTERIOR, Blender, WindowPlan
from cobertes.geo.windows import TiledWindow, Window
from cobertes.learn.inference import HeldOut
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.split import Part


class AsMapped:
    """The windows of the maps of all areas, and their logits blended as there.

    size, overlap  in pixels; ``blend`` as in `geo.blend`
    Raises SettingsError as `WindowPlan.of` does.
    """

    def __init__(self, ground: LabelledDataset, size: int, overlap: int, blend: str) -> None:
        self.ground, self.blends = ground, blend != INTERIOR
        self.plans = {
            name: WindowPlan.of(ground.areas[name].shape, size, overlap, blend) for name in ground.split.areas
        }
        self._places = {
            name: tuple(
                {span.start: number for number, span in enumerate(line)} for line in (plan.rows, plan.cols)
            )
            for name, plan in self.plans.items()
        }
        self.begin()

    def begin(self) -> None:
        """Forget what was lent: another pass begins."""
        self._blenders = {name: Blender(plan) for name, plan in self.plans.items()}
        self._last: tuple[str, int, int] | None = None
        self._block: Tensor | None = None

    def held_out(self, part: Part) -> list[HeldOut]:
        """The windows that blocks of a split take part in, in the map's order; one for every part of a block.

        The interior of a window that only lends a zone to others has no pixels.
        """
        found: list[HeldOut] = []
        for name, plan in self.plans.items():
            split = self.ground.split.areas[name]
            parts = {
                (row, col): split.intersections(plan.block(row, col), part)
                for row in range(len(plan.rows))
                for col in range(len(plan.cols))
            }
            for (row, col), own in parts.items():
                window, block = plan.window(row, col), plan.block(row, col)
                lends = not own and any(parts[fed] for fed in plan.contributes_to(row, col))
                kept = [Window(block.row, block.col, 0, 0)] if lends else own
                found += [(name, TiledWindow(window, part)) for part in kept]
        return found

    def reach(self, item: HeldOut) -> Window:
        """What a window has a share in."""
        return self.plans[item[0]].extent(*self._place(item))

    def blend(self, items: Sequence[HeldOut], logits: Tensor) -> Tensor:
        """Logits (B, K, H, W) of windows in the order of `held_out`, those of their blocks as the map has them."""
        if not self.blends:
            return logits
        logits = logits.float().cpu().clone()
        for item, values in zip(items, logits, strict=True):
            plan, (row, col) = self.plans[item[0]], self._place(item)
            if self._last != (item[0], row, col):  # the parts of a block follow each other
                pixels = values.permute(1, 2, 0).contiguous().numpy()
                block = self._blenders[item[0]].add(row, col, pixels)
                self._last, self._block = (item[0], row, col), torch.from_numpy(block).permute(2, 0, 1)
            values[:, *plan.block(row, col).slices_in(plan.window(row, col))] = self._block
        return logits

    def _place(self, item: HeldOut) -> tuple[int, int]:
        """Row and column of a window in its plan."""
        (rows, cols), window = self._places[item[0]], item[1].window
        return rows[window.row], cols[window.col]
