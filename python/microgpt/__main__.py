"""`python -m microgpt` is the command line."""

from .cli import main

main()
