"""What a person sees of a run: one offline HTML page (`render`) and tables for the terminal (`tables`)."""

from alignment.report.page import render

__all__ = ["render"]
