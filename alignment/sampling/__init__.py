"""N answers per prompt, scored, then best-of-N rows and preference pairs, joined by row id.

Selection is pure functions (select.py); `SampleBatch` (batch.py) has models answer one batch. Knows no Ray and writes
no file: distributed.sample does.
"""
