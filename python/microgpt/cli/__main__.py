"""`python -m microgpt.cli` is the command line."""

from . import main

main()
