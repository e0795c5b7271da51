"""What a run is told. No torch here. Names (method, profile, sampler, checker) are strings; `nrt.train` resolves them before it
touches the disk.
"""

from nrt.config.layers import build_config, dump_yaml, load_config, merge, packaged, parse_overrides, parse_yaml, plain_values, read_text
from nrt.config.schema import (
    AUTO_TOKENS,
    Columns,
    Config,
    DataConfig,
    Difficulty,
    LoraConfig,
    MarkersConfig,
    ObjectiveConfig,
    OptimizerConfig,
    Reading,
    Section,
    Source,
    TextConfig,
    WatchConfig,
)

__all__ = [
    "AUTO_TOKENS",
    "Columns",
    "Config",
    "DataConfig",
    "Difficulty",
    "LoraConfig",
    "MarkersConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "Reading",
    "Section",
    "Source",
    "TextConfig",
    "WatchConfig",
    "build_config",
    "dump_yaml",
    "load_config",
    "merge",
    "packaged",
    "parse_overrides",
    "parse_yaml",
    "plain_values",
    "read_text",
]
