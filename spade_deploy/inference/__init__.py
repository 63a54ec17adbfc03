"""Make images from label maps, a whole folder nearly as fast as the runtime alone. A bad file affects no other file.

A result is written whole or not at all. Results that exist are skipped, so a command that was stopped can go on.
"""

from spade_deploy.inference.arrays import make_images
from spade_deploy.inference.infer import InferSummary, infer
from spade_deploy.inference.jobs import Failure
from spade_deploy.inference.request import InferRequest
from spade_deploy.inference.style import encode_photo

__all__ = ["Failure", "InferRequest", "InferSummary", "encode_photo", "infer", "make_images"]
