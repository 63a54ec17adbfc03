"""The commands. Each one turns its options into a request, makes one call, and prints the result."""
