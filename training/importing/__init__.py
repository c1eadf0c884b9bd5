"""
Import the exports of annotation tools, for `training/import_data.py`.

draft: the output of the readers. records, brat, columns, docbin, webanno, ...: a reader for each family of tools.
offsets: units of offsets, and their check against quotes. documents: from exports to documents. output: files, the
split into train and dev, the table of labels. `training/corpus/recognise.py` recognises the tool.
"""
