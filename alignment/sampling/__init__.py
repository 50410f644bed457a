"""N answers per prompt, scored, then best-of-N rows and preference pairs, joined by row id.

Draws and selection are pure functions; `SampleBatch` runs the models on one batch. Knows no Ray and writes no file:
distributed.sample does.
"""

from alignment.sampling.answers import Answer
from alignment.sampling.batch import Part, SampleBatch
from alignment.sampling.prompts import as_prompt
from alignment.sampling.select import Selection, best_of_n, pairs_max_min, pairs_newest_previous

__all__ = [
    "Answer", "Part", "SampleBatch", "Selection", "as_prompt", "best_of_n", "pairs_max_min", "pairs_newest_previous",
]
