"""Codes that keep the maps of a batch apart, for a model whose hidden rows depend on the image: OASIS with its noise.

Such maps share no window. In the graph every image has a table of hidden rows of its own, a block of rows for each tap,
and these tables follow one another. A code in the graph's inputs is the row in the block of the first tap, so that the
graph needs no arithmetic: image * codes_per_image + code. NumPy only.
"""

from __future__ import annotations

import numpy as np

from spade_deploy.lookup.windows import Ints, LevelPatterns


def codes_per_image(num_codes: int, kernel: int) -> int:
    """By how much a code of one image is larger than that of the image before: the rows of an image's table.

    num_codes: the codes of one image, 0..num_codes-1; `num_codes` itself means outside.
    """
    return kernel**2 * (num_codes + 1)


def apart(codes: Ints, num_codes: int) -> tuple[Ints, int]:
    """N x H x W codes -> codes that no two maps share, to find windows among, and the code of 'outside the image'."""
    images = np.arange(len(codes), dtype=np.int32)[:, None, None]
    return codes + images * num_codes, len(codes) * num_codes


def for_graph(level: LevelPatterns, num_codes: int, kernel: int, count: int) -> LevelPatterns:
    """The tables of a level, made of the codes of `apart` of `count` maps, with the codes that the graph takes."""
    image = level.codes[:, kernel**2 // 2] // num_codes  # the centre of a row of `codes` is inside its image
    code = np.where(level.codes == count * num_codes, num_codes, level.codes % num_codes)
    shifted = code + image[:, None] * codes_per_image(num_codes, kernel)
    return LevelPatterns(shifted.astype(np.int32), level.patterns, level.index)


def latent_for_graph(latent: Ints, num_codes: int, kernel: int) -> Ints:
    """N x h x w x k*k codes of the latent map, with the codes that the graph takes."""
    images = np.arange(len(latent), dtype=np.int32)[:, None, None, None]
    return latent + images * codes_per_image(num_codes, kernel)
