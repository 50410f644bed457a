"""One YAML file -> one frozen `Run`, another -> the `Profile` it runs under. The only room that knows the keys of both;
never imports torch."""

from alignment.config.aims import Aim, Verdict, judge, parse_aim
from alignment.config.load import load_run, parse_run, place_of
from alignment.config.profile import (
    Cluster,
    Images,
    Pod,
    Profile,
    StageOverride,
    Storage,
    Toleration,
    bytes_of,
    profile_json,
)
from alignment.config.profile_file import load_profile
from alignment.config.run import (
    SAMPLE_SPLITS,
    AnyStage,
    Compute,
    Run,
    TrainStage,
    adapter_of,
    inputs_of,
    is_policy,
    micro_batch,
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
    "SAMPLE_SPLITS", "Aim", "AnyStage", "Cluster", "Compute", "Dpo", "Evaluate", "FieldSplit", "FolderModel", "Full",
    "GgufModel", "HubModel", "Images", "ImportData", "ImportModel", "Lora", "Pod", "Profile", "RatioSplit", "Reward",
    "Run", "Sample", "Sampling", "Scorer", "Sft", "Source", "StageOverride", "Storage", "TinyModel", "Toleration",
    "TrainStage", "Verdict", "adapter_of", "bytes_of", "inputs_of", "is_policy", "judge", "load_profile", "load_run",
    "micro_batch", "model_refs", "parse_aim", "parse_run", "place_of", "profile_json", "rows_refs", "splits_of",
]
