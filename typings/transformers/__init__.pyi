# transformers declares every model in its root. A type checker that follows it reads hundreds of
# files for minutes, so its names are Any here. Tests check its behaviour instead.
from typing import Any

def __getattr__(name: str) -> Any: ...
