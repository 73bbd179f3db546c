"""`python -m sqat` is the `sqat` command."""

from sqat.cli import main

main()
