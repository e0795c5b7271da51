"""Samplers: prompt ids → ids of traces or answers, exactly as sampled."""

from nrt.rollout.base import Request, Sampler
from nrt.rollout.generator import Generator
from nrt.rollout.hf import HFSampler
from nrt.rollout.prefetch import PrefetchSampler
from nrt.rollout.remote import RemoteSampler

__all__ = ["Generator", "HFSampler", "PrefetchSampler", "RemoteSampler", "Request", "Sampler"]
