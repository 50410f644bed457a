"""One YAML file -> one frozen `Run`. The only room that knows the run file's keys; never imports torch."""

from alignment.config.aims import Aim, Verdict, judge, parse_aim
from alignment.config.load import load_run, parse_run, place_of
from alignment.config.run import (
    SAMPLE_SPLITS,
    AnyStage,
    Compute,
    Run,
    TrainStage,
    adapter_of,
    inputs_of,
    is_policy,
    model_refs,
    rows_refs,
    splits_of,
)
from alignment.config.stages import (
    Dpo,
    Evaluate,
    FieldSplit,
    FolderModel,
    Full,
    GgufModel,
    HubModel,
    ImportData,
    ImportModel,
    Lora,
    RatioSplit,
    Reward,
    Sample,
    Sampling,
    Scorer,
    Sft,
    Source,
    TinyModel,
)

__all__ = [
    "SAMPLE_SPLITS", "Aim", "AnyStage", "Compute", "Dpo", "Evaluate", "FieldSplit", "FolderModel", "Full", "GgufModel",
    "HubModel", "ImportData", "ImportModel", "Lora", "RatioSplit", "Reward", "Run", "Sample", "Sampling", "Scorer",
    "Sft", "Source", "TinyModel", "TrainStage", "Verdict", "adapter_of", "inputs_of", "is_policy", "judge", "load_run",
    "model_refs", "parse_aim", "parse_run", "place_of", "rows_refs", "splits_of",
]
