"""Evaluate stage: answers of each model to a held-out split, measured and compared. The body is in evaluate.py."""
