"""Plain functions that judge an answer: reward functions of a sample stage, and the answer measures of evaluation.

Never imports torch. Reward models are not here: inference.scoring reads them.
"""

from alignment.rewards.answers import exact_match, normalize_answer, token_f1
from alignment.rewards.functions import BUILT_IN, FACTS, RewardFunction, combine, lacking, resolve

__all__ = ["BUILT_IN", "FACTS", "RewardFunction", "combine", "exact_match", "lacking", "normalize_answer", "resolve",
           "token_f1"]
