"""What every command shares: errors and exit codes, processors and memory, files."""
