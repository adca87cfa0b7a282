"""Data sets that ship with the package, and readers for a user's own."""
