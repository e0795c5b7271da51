"""The `nrt` command line.

`app.py` and `*_commands.py` define the commands. They import other packages of nrt only inside
functions, so that `nrt --help` is fast and loads no torch; tests/test_imports.py checks it.
"""
