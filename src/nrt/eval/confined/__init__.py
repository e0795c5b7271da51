"""What runs inside the process of a model-written program: `__main__` is started as a script, apart from the rest of nrt."""
