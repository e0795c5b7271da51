"""HTTP protocol of trainer and rollout server: JSON, and weights as a safetensors file; no pickle.

    POST /weights   body: all weights as safetensors   → 200 weights record
    POST /sample    body: a request                    → 200 weights record + samples;
                                                         409: no weights yet
    GET  /health                                       → 200 weights record

The weights record describes the server's weights: `pusher` is the trainer that pushed them last,
`version` its version of them. Each POST has the headers X-Nrt-Pusher and X-Nrt-Version: the trainer
that sends it, and the version of that trainer's weights. A connection transfers one request.

Replies with another status have an `error`: 400 and 401 are the trainer's fault, 500 the server's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nrt.errors import InputError
from nrt.rollout.base import Request
from nrt.types import Sample

TOKEN_VARIABLE = "NRT_ROLLOUT_TOKEN"
"""Environment variable with the token that a server requires and a trainer sends, if it is set."""

PUSHER_HEADER, VERSION_HEADER = "X-Nrt-Pusher", "X-Nrt-Version"


def request_to_json(request: Request) -> dict[str, Any]:
    """Return the request as JSON.

    It has one seed for each prompt, so samples do not depend on the other prompts sent with it.
    """
    return asdict(request) | {
        "stop_ids": sorted(request.stop_ids),
        "banned": sorted(request.banned),
        "seed": list(request.seeds),
    }


def request_from_json(values: Mapping[str, Any]) -> Request:
    """Return the request; raises InputError for anything else than a request."""
    try:
        prompts = tuple(tuple(map(int, prompt)) for prompt in values["prompts"])
        converted = {
            "stop_ids": frozenset(values["stop_ids"]),
            "banned": frozenset(values["banned"]),
            "prompts": prompts,
            "seed": tuple(values["seed"]),
        }
        return Request(**{**values, **converted})
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"the body is not a valid request for samples: {error}") from None


def samples_to_json(groups: Sequence[Sequence[Sample]]) -> list[list[Any]]:
    """Return [ids, log-probabilities] of each sample."""
    return [[[sample.ids, sample.logps] for sample in group] for group in groups]


def samples_from_json(groups: Sequence[Sequence[Any]], version: int) -> list[list[Sample]]:
    """Return the samples, all with the same version of the weights."""
    return [[Sample(tuple(ids), tuple(logps), version) for ids, logps in group] for group in groups]
