"""`python -m spade_deploy` is `spade`: for `torchrun --nproc-per-node 2 -m spade_deploy train ...`."""

import os
import sys


def _forget_current_folder() -> None:
    """`python -m` looks for modules in the current folder first: a torch.py there would be taken for PyTorch."""
    # Not pathlib: nothing may be imported before.
    home = os.path.realpath(os.path.dirname(os.path.dirname(__file__)))  # noqa: PTH120
    if not sys.flags.safe_path and sys.path and os.path.realpath(sys.path[0]) == os.path.realpath("") != home:
        del sys.path[0]


if __name__ == "__main__":
    _forget_current_folder()
    from spade_deploy.cli import main

    main()
