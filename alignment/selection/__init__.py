"""Which rows of a pool are worth learning from: by quality, coverage, necessity, at random, or all of several sets.

Every way is a pure function over records and numbers that are joined by row id. `ScoreBatch` and `EmbedBatch` have
models read one batch. Knows no Ray and writes no file: distributed.select does.
"""
