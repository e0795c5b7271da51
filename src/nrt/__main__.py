"""`python -m nrt` runs the command `nrt`."""

from nrt.cli.app import main

main()
