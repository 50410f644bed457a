"""A process in vLLM's place that ends before it is up, for test_engine_choice.py."""

import sys

if __name__ == "__main__":
    print("INFO of no use")
    print("RuntimeError: the card is on fire", file=sys.stderr)
    sys.exit(7)
