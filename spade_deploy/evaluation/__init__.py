"""Judge models on held-out data: one report with every figure, and what it was measured with.

`request.py` and `judge_request.py` have what may be asked for and `run.py` the order; `data.py` the samples,
`models.py` what makes images, `measure.py` the figures, `verdict.py` says which model is the best, `result.py` is the
report and `page.py` its files.
"""

from spade_deploy.evaluation.judge_request import JudgeRequest
from spade_deploy.evaluation.page import write_report
from spade_deploy.evaluation.request import DataFlags, EvalRequest
from spade_deploy.evaluation.result import EvalResult
from spade_deploy.evaluation.row import Row
from spade_deploy.evaluation.run import evaluate

__all__ = ["DataFlags", "EvalRequest", "EvalResult", "JudgeRequest", "Row", "evaluate", "write_report"]
