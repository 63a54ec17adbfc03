"""Label maps in, images out: a folder at the speed of the bare session, and one bad file costs that file alone.

A result is written whole or not at all; what is there already is skipped, so a run that was stopped goes on.
"""

from spade_deploy.inference.arrays import make_images
from spade_deploy.inference.infer import InferSummary, infer
from spade_deploy.inference.plan import Failure
from spade_deploy.inference.request import InferRequest
from spade_deploy.inference.style import encode_photo

__all__ = ["Failure", "InferRequest", "InferSummary", "encode_photo", "infer", "make_images"]
