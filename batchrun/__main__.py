"""`python -m batchrun`."""

from batchrun.cli.main import main

main()
