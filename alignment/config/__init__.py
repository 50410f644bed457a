"""One YAML file -> one frozen `Run`, another -> the `Profile` it runs under. The only room that knows the keys of both;
never imports torch."""

from alignment.config.aims import Aim, Verdict, judge, parse_aim
from alignment.config.compute import Compute
from alignment.config.load import load_run, parse_run, place_of
from alignment.config.profile import (
    Cluster,
    Images,
    Pod,
    Profile,
    ServePods,
    StageOverride,
    Storage,
    Toleration,
    bytes_of,
    profile_json,
)
from alignment.config.profile_file import load_profile
from alignment.config.run import Run
from alignment.config.serve import Limits, Serve, Serving, served
from alignment.config.stages import KINDS, METHODS, AnyStage
from alignment.config.stages.artifact import (
    ArtifactModel,
    ArtifactRef,
    FromArtifact,
    ImportArtifact,
    ImportArtifactEmbedder,
    ImportArtifactReward,
    ImportRows,
    RunRows,
)
from alignment.config.stages.base import Outside, Stage, row_of
from alignment.config.stages.choose import Choose
from alignment.config.stages.documents import DocumentFile, Documents, ImportDocuments
from alignment.config.stages.endpoint import EndpointModel, ImportEndpoint
from alignment.config.stages.evaluate import Evaluate
from alignment.config.stages.evaluate_harness import EvaluateHarness, Harness, TaskFile
from alignment.config.stages.evaluate_pairs import EvaluatePairs
from alignment.config.stages.export import Export
from alignment.config.stages.generate.base import Generate
from alignment.config.stages.generate.contrastive import Contrastive
from alignment.config.stages.generate.document_qa import DocumentQa, QuestionFilters
from alignment.config.stages.generate.judged_pairs import JudgedPairs
from alignment.config.stages.generate.multihop import MultiHop
from alignment.config.stages.generate.self_instruct import Filters, SelfInstruct
from alignment.config.stages.imports import (
    FieldSplit,
    FolderModel,
    GgufModel,
    HubModel,
    ImportData,
    ImportEmbedder,
    ImportModel,
    ImportReader,
    ImportReward,
    RatioSplit,
    ShippedTemplate,
    Source,
    TinyModel,
)
from alignment.config.stages.infer import Infer
from alignment.config.stages.rewards import RewardPart, Rewards
from alignment.config.stages.sample import Sample
from alignment.config.stages.sampling import Sampling
from alignment.config.stages.score import Judge, JudgedScorer, Scorer
from alignment.config.stages.select import (
    WAYS,
    Select,
    SelectCoverage,
    SelectMerge,
    SelectNecessity,
    SelectQuality,
    SelectRandom,
)
from alignment.config.stages.strategies import Adapter, Full, Lora, QLora
from alignment.config.stages.train import Dpo, Reward, Sft, TrainBase, as_train

__all__ = [
    "KINDS", "METHODS", "WAYS", "Adapter", "Aim", "AnyStage", "ArtifactModel", "ArtifactRef", "Choose", "Cluster",
    "Compute", "Contrastive", "DocumentFile", "DocumentQa", "Documents", "Dpo", "EndpointModel", "Evaluate",
    "EvaluateHarness", "EvaluatePairs", "Export", "FieldSplit", "Filters", "FolderModel", "FromArtifact", "Full",
    "Generate", "GgufModel", "Harness", "HubModel", "Images", "ImportArtifact", "ImportArtifactEmbedder",
    "ImportArtifactReward", "ImportData", "ImportDocuments", "ImportEmbedder", "ImportEndpoint", "ImportModel",
    "ImportReader", "ImportReward", "ImportRows", "Infer", "Judge", "JudgedPairs", "JudgedScorer", "Limits", "Lora",
    "MultiHop", "Outside", "Pod", "Profile", "QLora", "QuestionFilters", "RatioSplit", "Reward", "RewardPart",
    "Rewards", "Run", "RunRows", "Sample", "Sampling", "Scorer", "Select", "SelectCoverage", "SelectMerge",
    "SelectNecessity", "SelectQuality", "SelectRandom", "SelfInstruct", "Serve", "ServePods", "Serving", "Sft",
    "ShippedTemplate", "Source", "Stage", "StageOverride", "Storage", "TaskFile", "TinyModel", "Toleration",
    "TrainBase", "Verdict", "as_train", "bytes_of", "judge", "load_profile", "load_run", "parse_aim", "parse_run",
    "place_of", "profile_json", "row_of", "served",
]
