"""Model families of the vision-language pipeline, loading, adapters and cards.

Names only; what is computed with a model lives in `forwards`.
"""
