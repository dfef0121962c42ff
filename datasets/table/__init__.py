"""Own data: rows of files, folders and Hugging Face data sets whose columns a config names, as prompts of every kind.

A reader of one published form lives in the room of its modality; how rows are read at all lives in `shared`.
"""

from grpo_mm.registry import Entry

KINDS = (Entry("prompts", "table", "grpo_mm.datasets.table.reader:Table"),)
"""What a config can name of this room."""
