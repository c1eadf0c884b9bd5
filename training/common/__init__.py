"""Shared by all commands: errors and exit codes, processors and memory, files."""
