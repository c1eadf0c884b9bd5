"""Extract the entities of many texts: batches, resumable results, formats of other tools."""
