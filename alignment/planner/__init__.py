"""What a stage will need before it is started: parameters, rows, tokens, memory, time. Never imports torch."""

from alignment.planner.estimate import Memory, Rates, generate_memory, measure_rates, train_memory
from alignment.planner.plan import on_cards, plan, rates_of
from alignment.planner.sizes import ModelSize
from alignment.planner.state import StagePlan

__all__ = ["Memory", "ModelSize", "Rates", "StagePlan", "generate_memory", "measure_rates", "on_cards", "plan",
           "rates_of", "train_memory"]
