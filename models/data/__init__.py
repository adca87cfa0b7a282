"""Data sets that ship with the package, and readers for a user's own."""

from revgrad.models.data.case import Case, CaseDataset

__all__ = ["Case", "CaseDataset"]
