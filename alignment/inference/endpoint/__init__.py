"""The engine that asks an OpenAI-compatible endpoint, through the openai package.

generator.py is the `Generator`; client.py makes one request and says what came of it; reply.py reads what came back;
pace.py decides when the next may go; ledger.py keeps what was paid. None of them imports torch.
"""
