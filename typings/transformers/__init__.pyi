# transformers declares every model in its root, and a type checker that follows it reads hundreds of files for minutes.
# Its names are Any here; tests, not types, hold us to its behaviour.
from typing import Any

def __getattr__(name: str) -> Any: ...
