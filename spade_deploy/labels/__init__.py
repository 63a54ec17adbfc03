"""From label files to ids: file formats, label sets, layouts of data sets, pairing, linting, repairing."""
