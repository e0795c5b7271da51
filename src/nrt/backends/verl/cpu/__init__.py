"""verl on a machine without a GPU, for tests and for trying a recipe. No other package imports it.

With `device=cpu`, nrt names these modules to verl. `platform` is in VERL_USE_EXTERNAL_MODULES,
which verl imports before everything else. `workers` is the model's `external_lib`, which verl's
workers import later. Both use verl's own plug-in interfaces: a platform, an engine for a device, a
rollout server.
"""
