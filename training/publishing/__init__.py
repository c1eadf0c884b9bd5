"""A Hub folder: its card, and what is checked before it is uploaded."""
