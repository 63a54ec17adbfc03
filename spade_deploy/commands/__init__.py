"""The commands: what each one asks for, one call, and what is printed."""
