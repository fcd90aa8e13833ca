"""What the tests of compressive sensing share."""

import networks
import numpy as np
import torch

SMALL = {**networks.SMALL, "last_extra": 4}


def network(ratio: int = 10):
    return networks.small("Compressive_Sensing", **SMALL, cs_ratio=ratio)


def alone(model, image: np.ndarray, tile: int = 0) -> np.ndarray:
    """What the network makes of an image H×W in [0,1], of each tile alone (0: of the whole), where
    zeros fill up the last ones."""
    sides = [tile or -(-length // 32) * 32 for length in image.shape]
    padding = [(0, -length % side) for length, side in zip(image.shape, sides, strict=True)]
    padded = np.pad(image.astype(np.float32), padding)
    for top in range(0, len(padded), sides[0]):
        for left in range(0, padded.shape[1], sides[1]):
            part = padded[top : top + sides[0], left : left + sides[1]]
            with torch.no_grad():
                part[:] = model(torch.from_numpy(part.copy())[None, None])[0][0, 0]
    return padded[: image.shape[0], : image.shape[1]]
