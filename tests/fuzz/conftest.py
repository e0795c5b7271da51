"""Looking for doctests would import what needs atheris."""

collect_ignore = ["guided.py"]
