"""Work on a Ray cluster: `spade train --ray` and `spade infer --ray`."""
