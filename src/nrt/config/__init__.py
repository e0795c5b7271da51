"""Settings of a run: the schema, recipes and profiles, and `key=value` overrides.

Nothing here imports torch. Methods, profiles, samplers and checkers are names; `nrt.train` resolves
them before it writes to the disk.
"""

from nrt.config.data_sections import (
    ColumnsConfig,
    DataConfig,
    DifficultyConfig,
    RowsConfig,
    SourceConfig,
    TextConfig,
)
from nrt.config.layers import (
    build_config,
    dump_yaml,
    flat_settings,
    load_config,
    nest_settings,
    parse_overrides,
    parse_yaml,
)
from nrt.config.recipes import merge_settings, packaged_recipes
from nrt.config.safe_yaml import parse_plain_yaml, read_yaml_file
from nrt.config.schema import AUTO_TOKENS_PER_BATCH, Config
from nrt.config.sections import (
    HeldoutConfig,
    LoraConfig,
    MarkersConfig,
    ObjectiveConfig,
    OptimizerConfig,
    Section,
    VLLMConfig,
    WatchConfig,
)

__all__ = [
    "AUTO_TOKENS_PER_BATCH",
    "ColumnsConfig",
    "Config",
    "DataConfig",
    "DifficultyConfig",
    "HeldoutConfig",
    "LoraConfig",
    "MarkersConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "RowsConfig",
    "Section",
    "SourceConfig",
    "TextConfig",
    "VLLMConfig",
    "WatchConfig",
    "build_config",
    "dump_yaml",
    "flat_settings",
    "load_config",
    "merge_settings",
    "nest_settings",
    "packaged_recipes",
    "parse_overrides",
    "parse_plain_yaml",
    "parse_yaml",
    "read_yaml_file",
]
