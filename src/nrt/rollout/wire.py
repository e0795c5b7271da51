"""What a trainer and a rollout server say to each other over HTTP: JSON, and weights as the bytes of a safetensors file; no pickle.

    POST /weights   body: safetensors, of all weights       → 200 held
    POST /sample    body: a request                         → 200 held + samples; 409: no weights yet
    GET  /health                                            → 200 held

Each POST has the headers X-Nrt-Pusher and X-Nrt-Version: who asks, and the version of its weights. A connection has one request.
`held` says which weights the server has: who pushed them last, and under which version. 400 and 401 are the trainer's fault, 500 the
server's; the body then has `error`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nrt.errors import InputError
from nrt.rollout.base import Request
from nrt.types import Sample

TOKEN = "NRT_ROLLOUT_TOKEN"
"""The environment variable that holds what a server asks for and a trainer gives, where there is one."""
PUSHER, VERSION = "X-Nrt-Pusher", "X-Nrt-Version"


def request_to_json(request: Request) -> dict[str, Any]:
    """With a seed of each prompt's, so that its samples do not depend on which prompts it is sent with."""
    return asdict(request) | {"stop_ids": sorted(request.stop_ids), "banned": sorted(request.banned), "seed": list(request.seeds)}


def request_from_json(values: Mapping[str, Any]) -> Request:
    """Raises InputError for anything that is no request."""
    try:
        prompts = tuple(tuple(map(int, prompt)) for prompt in values["prompts"])
        sets = {name: frozenset(values[name]) for name in ("stop_ids", "banned")}
        return Request(**{**values, **sets, "prompts": prompts, "seed": tuple(values["seed"])})
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"this is no request for samples: {error}") from None


def samples_to_json(groups: Sequence[Sequence[Sample]]) -> list[list[Any]]:
    """[ids, log-probabilities] of each sample."""
    return [[[sample.ids, sample.logps] for sample in group] for group in groups]


def samples_from_json(groups: Sequence[Sequence[Any]], version: int) -> list[list[Sample]]:
    """All sampled by the weights of one version."""
    return [[Sample(tuple(ids), tuple(logps), version) for ids, logps in group] for group in groups]
