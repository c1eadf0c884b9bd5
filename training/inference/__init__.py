"""Entities of many texts: batches, results that resume, formats of other tools."""
