"""Commands that are killed (SIGKILL) at every kind of moment: `python -m tests.kills --kills 50 --seed 0`.

A chain is a command that is killed one to three times and then left to end. After each kill all good work is still
there; after the end the results are those of an unbroken run, and nothing is left of the broken ones.
"""
