"""Video grounding: benchmark metrics as their official scorers compute them. Results are plain dicts, in per cent."""
