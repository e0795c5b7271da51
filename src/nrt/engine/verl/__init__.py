"""Training on a Ray cluster by verl (https://github.com/volcengine/verl), installed and unmodified.

verl keeps the weights, in FSDP or Megatron workers, and the rollout servers, vLLM or SGLang. `VerlEngine` asks them for what training
asks of any engine, traces, scores and updates, so what a step does is the same code on one machine and on many. Nothing of the
objective stands here: the workers' loss is `nrt.objective.nrt_loss` over `nrt.objective.streams`.

    requirements.py   what must be installed             batch.py    rows of ids → verl's batches and back
    bridge.py         nrt's config → verl's              loss.py     the loss that the workers run
    trainer.py        verl's trainer without its loop    sampling.py traces by ids from verl's rollout servers
    engine.py         all of it as an engine             cpu/        a platform for machines without a GPU, for tests

No module but these imports verl or ray, and they do so inside the cluster's own part: `nrt.engine.verl.bridge` loads neither.
"""
