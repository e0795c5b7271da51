"""`nrt plan … engine=verl`: how verl's FSDP2 and Megatron layouts divide a run, on paper, up to a thousand GPUs.

    layout.py    what nrt and verl's defaults say of it       traffic.py   bytes between GPUs, seconds of rings
    work.py      tokens and operations, row by row            clock.py     seconds of a step by phase
    memory.py    bytes on a GPU                               planning.py  all of it for a question, and for other numbers of GPUs
    limits.py    where it breaks first                        advice.py    what to change; show.py: tables

Loads neither verl nor ray.
"""

from nrt.plan.cluster.advice import advise_cluster
from nrt.plan.cluster.planning import ClusterPlan, Scaled, make_cluster_plan, scale

__all__ = ["ClusterPlan", "Scaled", "advise_cluster", "make_cluster_plan", "scale"]
