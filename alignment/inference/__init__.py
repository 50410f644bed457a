"""Models: import them into the store, load them, generate, log-probabilities, reward scores (transformers, peft)."""
