"""verl on a machine without a GPU, for tests and for trying a recipe out. Nothing else imports this.

`device=cpu` names these modules to verl: `platform` in VERL_USE_EXTERNAL_MODULES, which verl imports before all else, and `workers` as
the model's `external_lib`, which its workers import later. What they add is verl's own kind of plug-in: a platform, an engine for a
device, a rollout server.
"""
