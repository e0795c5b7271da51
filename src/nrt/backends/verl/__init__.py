"""Training on a Ray cluster by verl (https://github.com/volcengine/verl), installed and unmodified.

verl holds the weights, in FSDP or Megatron workers, and runs the rollout servers, vLLM or SGLang.
`VerlEngine` calls them for what the trainer needs of any engine: traces, scores and updates. So a
training step is the same code on one machine and on many. This package contains no part of the
objective: the workers' loss is `nrt.objective.nrt_loss` over `nrt.objective.streams`.

    requirements.py   check what must be installed
    bridge.py         nrt's config → verl's
    engine.py         implementation of the engine interface
    ray_cluster.py    start or join a Ray cluster
    trainer.py        verl's trainer without its loop
    batch.py          rows of ids → verl's batches and back
    loss.py           the loss that the workers run
    sampling.py       traces by ids from verl's rollout servers
    cpu/              a platform for machines without a GPU

Only this package imports verl or ray, and only on a cluster: `nrt.backends.verl.bridge` loads
neither.
"""
