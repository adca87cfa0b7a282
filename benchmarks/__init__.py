"""Measurements of the package against plain autograd and the other libraries."""
