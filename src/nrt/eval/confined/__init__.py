"""Code in the process of a model-written program; `__main__` runs as a script, without nrt."""
