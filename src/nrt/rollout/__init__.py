"""Samplers: prompt ids → traces or answers as ids, exactly as sampled."""

from nrt.rollout.ahead import AheadSampler
from nrt.rollout.base import Request, Sampler
from nrt.rollout.hf import HFSampler
from nrt.rollout.remote import RemoteSampler
from nrt.rollout.scripted import ScriptedSampler
from nrt.rollout.writer import Writer

__all__ = ["AheadSampler", "HFSampler", "RemoteSampler", "Request", "Sampler", "ScriptedSampler", "Writer"]
