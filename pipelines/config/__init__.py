"""The config of a run: its fields, reading and writing it, and a user's own code that it names."""

from pipelines.config.checks import is_own as is_own
from pipelines.config.schema import ClusterConfig as ClusterConfig
from pipelines.config.schema import Config as Config
from pipelines.config.schema import CriterionName as CriterionName
from pipelines.config.schema import DataPruningConfig as DataPruningConfig
from pipelines.config.schema import PolicyName as PolicyName
from pipelines.config.schema import TrackingConfig as TrackingConfig
from pipelines.config.schema import WeightPruningConfig as WeightPruningConfig
from pipelines.config.schema import field_paths as field_paths
from pipelines.config.training import AugmentConfig as AugmentConfig
from pipelines.config.training import DataConfig as DataConfig
from pipelines.config.training import FramesConfig as FramesConfig
from pipelines.config.training import LossName as LossName
from pipelines.config.training import ModelConfig as ModelConfig
from pipelines.config.training import ModelName as ModelName
from pipelines.config.training import SurrogateName as SurrogateName
from pipelines.config.training import TrainConfig as TrainConfig
