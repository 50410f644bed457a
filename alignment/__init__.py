"""KubeAlign: from a few seed documents to a served, aligned language model, on Ray and Kubernetes.

The rooms and the rules between them stand in docs/architecture.md. Importing this package imports
nothing heavy: torch, ray and the trainers are loaded by the stage that needs them.
"""

__version__ = "0.1.0"
