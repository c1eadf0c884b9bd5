"""Hostile texts, the properties to check on each, and the long run over many of them (`make fuzz`)."""
