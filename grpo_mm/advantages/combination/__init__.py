"""Several components to one value: sums, means, gates, outcomes.

No comparison with other rows.
"""
