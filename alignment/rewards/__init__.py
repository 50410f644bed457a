"""What judges an answer: reward functions, endpoints, the sum of an online reward's parts, and evaluation's measures.

Never imports torch. Reward models are not here: inference.scoring reads them.
"""

from alignment.rewards.answers import exact_match, normalize_answer, token_f1
from alignment.rewards.functions import BUILT_IN, FACTS, RewardFunction, combine, lacking, named, resolve
from alignment.rewards.parts import Judge, Judged, RewardSum

__all__ = ["BUILT_IN", "FACTS", "Judge", "Judged", "RewardFunction", "RewardSum", "combine", "exact_match", "lacking",
           "named", "normalize_answer", "resolve", "token_f1"]
