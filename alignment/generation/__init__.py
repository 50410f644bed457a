"""Data from seeds: prompts for a teacher, parsers of what it says, filters, novelty. `asking` alone asks a model."""
