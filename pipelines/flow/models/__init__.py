"""Model families of the flow pipeline, one small file each: names only, no state; adapters and cards beside them.

No sampler and no method.
"""
