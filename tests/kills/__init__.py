"""Commands that are killed (SIGKILL) at every kind of moment: `python -m tests.kills --kills 50 --seed 0`.

A chain is a command that is killed one to three times and then left to end. After each kill all good work is still
there; after the end the results are those of an unbroken run, and nothing is left of the broken ones.
"""

import sys
from pathlib import Path

# The helpers of the tests (stand_in) are modules beside this package; pytest finds them by itself.
_TESTS = str(Path(__file__).resolve().parents[1])
if _TESTS not in sys.path:
    sys.path.insert(0, _TESTS)
