"""Find the distinct windows of label maps, and make the tables of the lookup graph of them. Needs only NumPy."""
