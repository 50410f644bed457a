"""Answers of models to a held-out split, measured and compared. Knows no Ray and no files of a stage's own: the body is
distributed/evaluate.py.
"""
