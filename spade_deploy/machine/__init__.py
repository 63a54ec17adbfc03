"""Facts about the machine: memory of this process, processor cores."""
