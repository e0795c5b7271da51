"""`python -m nrt` is the command `nrt`."""

from nrt.cli import main

main()
