"""Models: import them into the store, load them, generate, log-probabilities, reward scores (transformers, peft)."""

from alignment.inference.import_model import import_model

__all__ = ["import_model"]
