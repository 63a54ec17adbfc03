"""`python -m spade_deploy` is `spade`: for `torchrun --nproc-per-node 2 -m spade_deploy train ...`."""

from spade_deploy.cli import main

if __name__ == "__main__":
    main()
