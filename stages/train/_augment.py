"""Random crops and light for small pictures, a whole batch at once, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def augment(
    pixels_BHWC: torch.Tensor,
    size: int,
    draw_4B: torch.Tensor,
    *,
    scale: float,
    brightness: float,
) -> torch.Tensor:
    """Return random crops, uint8 (B, size, size, 3): own scale, place and brightness per image.

    draw_4B: random numbers in [0, 1), from the CPU whatever the device of the pixels.  scale: least
    side of a crop as a share of the image's.  brightness: greatest relative change. No mirroring:
    captions say left and right.
    """
    import torch

    batch = len(pixels_BHWC)
    draw = draw_4B.to(pixels_BHWC.device)
    side = scale + (1 - scale) * draw[0]
    # What affine_grid gives, without its matrix product: the crops are not turned.
    steps = (torch.arange(size, device=side.device) * 2 + 1) / size - 1
    grid = torch.empty(batch, size, size, 2, device=side.device)
    for axis in (0, 1):
        centre = (2 * draw[1 + axis] - 1) * (1 - side)
        line_BS = side[:, None] * steps + centre[:, None]
        grid[..., axis] = line_BS[:, None, :] if axis == 0 else line_BS[:, :, None]
    images = pixels_BHWC.permute(0, 3, 1, 2).float()
    crops = torch.nn.functional.grid_sample(
        images, grid, padding_mode="reflection", align_corners=False
    )
    light = 1 + brightness * (2 * draw[3] - 1)
    bright = crops.mul_(light[:, None, None, None]).clamp_(0, 255)
    return bright.round_().to(torch.uint8).permute(0, 2, 3, 1)
