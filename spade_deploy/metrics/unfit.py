"""Tell judges that fail on real photos: what they say of generated images is worth nothing.

`spade eval` gives no verdict by such a judge, and `spade train` chooses no best checkpoint by it.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from spade_deploy.metrics.confusion import accuracy_of, by_chance, kappa_of

LEAST_KAPPA = 0.2
"""A segmenter whose agreement with the labels of real photos is less is no judge. Landis and Koch (1977) call agreement
up to here slight; a segmenter that was trained for a few hundred steps has 0.4 and more."""
BY_SEGMENTER = ("miou", "accuracy")
BY_EXTRACTOR = ("frechet", "kernel")


def unfit_judges(sums: NDArray[Any] | None, features: NDArray[Any] | None) -> dict[str, str]:
    """The figures whose judge fails on real photos, and why, as a part of a sentence.

    sums: 3 x C, what a segmenter finds on real photos (`ConfusionMatrix.sums`); features: N x F of N real photos, by an
    extractor. None where there is no such judge.
    """
    found = {}
    if sums is not None:
        kappa = kappa_of(sums)
        if not kappa >= LEAST_KAPPA:
            seen, guessed = (f"{100 * float(share):.1f} %" for share in (accuracy_of(sums), by_chance(sums)))
            why = (
                f"the segmenter finds {seen} of the pixels of the real photos, guessing finds {guessed}"
                f" (kappa {kappa:.2f}, needed {LEAST_KAPPA})"
            )
            found.update(dict.fromkeys(BY_SEGMENTER, why))
    if features is not None and len(features) > 1 and not features.std(0).any():
        found.update(dict.fromkeys(BY_EXTRACTOR, "the extractor gives the same features for all real photos"))
    return found
