"""Start or join a Ray cluster for verl, and explain its errors."""

# pyright: reportMissingImports=false
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nrt.config import Config
from nrt.errors import InputError, NrtError, RunError

CPUS_PER_GPU = 3
"""Ray CPUs that verl reserves for each GPU."""

PASSED_VARIABLES = (
    "VERL_PLATFORM",
    "VERL_USE_EXTERNAL_MODULES",
    "OMP_NUM_THREADS",
    "PYTHONPATH",
    "HF_HUB_OFFLINE",
)
"""Environment variables that the workers get from this process."""


def choose_platform(config: Config) -> None:
    """Set the environment variables that verl reads when it is imported, here and in workers."""
    if config.device == "cpu":
        os.environ["VERL_PLATFORM"] = "cpu"
        os.environ["VERL_USE_EXTERNAL_MODULES"] = "nrt.backends.verl.cpu.platform"
        os.environ["OMP_NUM_THREADS"] = str(config.threads or 1)
    # Ray warns unless this future default is set
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def start_ray(verl_config: Any, config: Config) -> None:
    """Start Ray as verl does, without a task runner: this process is the controller.

    Raises InputError if there is no cluster to join, or if it is too small.
    """
    import ray
    from omegaconf import OmegaConf
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    settings = OmegaConf.to_container(verl_config.ray_kwargs.ray_init, resolve=True)
    assert isinstance(settings, dict)
    user_environment = _without_none(settings.pop("runtime_env", None) or {})
    environment = get_ppo_ray_runtime_env(verl_config)
    variables = {name: os.environ[name] for name in PASSED_VARIABLES if name in os.environ}
    environment["env_vars"] |= variables
    runtime_env = OmegaConf.to_container(OmegaConf.merge(environment, user_environment))
    settings = _without_none(settings)
    gpus = config.nodes * config.gpus_per_node
    if config.device == "cpu":
        # counts for Ray's scheduler; the machine may have fewer cores
        local = {
            "num_gpus": gpus,
            "num_cpus": CPUS_PER_GPU * gpus + 2,
            "include_dashboard": False,
        }
        settings = {**local, **settings}
    elif config.nodes > 1:
        settings.setdefault("address", "auto")
    try:
        ray.init(runtime_env=runtime_env, log_to_driver=False, **settings)
    except ConnectionError as error:
        raise InputError(
            f"no Ray cluster was found ({error}); start one with `ray start` on every node "
            "(docs/cluster.md)"
        ) from error
    _check_resources(ray.cluster_resources(), config)


def worker_error(error: Exception, folder: Path) -> NrtError:
    """Return a one-line error for Ray's error. An error of nrt raised in a worker is returned."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, NrtError):
        return cause
    text = str(cause or error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # the last line of a traceback; else the first line of Ray's own message
    reason = lines[-1] if cause or "creation task" in text else lines[0]
    return RunError(
        f"a worker of the cluster failed: {type(cause or error).__name__}: {reason:.300} — saved "
        f"files are complete: `nrt resume {folder}` resumes from the last checkpoint"
    )


def _check_resources(resources: dict[str, float], config: Config) -> None:
    """Raise InputError if the cluster is too small. verl would wait without a message."""
    gpus = config.nodes * config.gpus_per_node
    for kind, needed in (("GPU", gpus), ("CPU", CPUS_PER_GPU * gpus)):
        available = resources.get(kind, 0)
        if available < needed:
            raise InputError(
                f"the Ray cluster has {available:g} {kind}s, and nodes={config.nodes} × "
                f"gpus_per_node={config.gpus_per_node} needs {needed}; start Ray on all nodes, or "
                "lower nodes or gpus_per_node"
            )


def _without_none(settings: dict[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in settings.items() if value is not None}
