"""Writes HTML pages from templates."""
