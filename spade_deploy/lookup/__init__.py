"""Label map -> what is distinct in it: windows and the tables of the lookup graph. NumPy only."""
