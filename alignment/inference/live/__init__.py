"""Models that answer many people at once: questions come at any time, tokens go out when they are there.

    asked      questions and what is heard of them, plain; imports no torch
    opened     models of artifacts behind one engine, by key
    embedded   transformers in this process; vLLM's side is inference/vllm/live.py

Asked by `serving` alone; stages use `Generator` (generator.py), which works on batches.
"""
