"""What is fastest on this machine: measured here, among what passes validation here, and kept for the next time."""
