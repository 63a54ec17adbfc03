"""Damaged inputs for every reader of the package: `python -m tests.fuzz --cases 10000 --seed 0 --jobs 2`.

    corpus.py         the good files that are damaged: runs, artifacts, weights, images, made once
    *_damage.py       how bytes, JSON, images, weights and graphs are damaged; all of it from a seed
    png.py            a second reading of PNG files, to compare ids with
    *_readers.py      a case for each reader: damage something, give it to the commands and functions that read it
    watch.py          what must hold for a case, and what is seen when it does not
    worker.py         one process that runs cases; run.py starts several and outlives whatever they do

A case is the seed and its number: `python -m tests.fuzz --case 1234` runs it again and keeps its folder.
"""
