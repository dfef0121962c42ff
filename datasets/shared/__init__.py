"""What readers of several modalities need: rows of files and hubs, checked fields, prompts gathered with what was left
out, controls.

A reader of one published form lives in the room of its modality.
"""
