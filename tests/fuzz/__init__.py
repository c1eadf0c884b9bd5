"""Hostile texts, what must hold for each, and the run over very many of them (`make fuzz`)."""
