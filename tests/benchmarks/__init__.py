"""Time and memory of SeNER and its peers: `make bench`, or `cd tests && ../.venv/bin/python -m benchmarks --help`."""
