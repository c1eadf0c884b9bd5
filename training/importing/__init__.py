"""
What `training/import_data.py` uses: a reader for each family of annotation tools, and the way from what they read to
documents of this project.

recognise: which tool wrote a record or a file (the standard library alone). draft: what a reader gives, and what it
notes. records, brat, columns, docbin, webanno, ...: the readers. offsets: units of offsets, and quotes that tell them.
documents: from exports to documents. output: files, the split, the table of labels.
"""
