"""What a sample is compared with: the mean, median or quantile of its group, of a stratum, of a fleet, or a shrunk or
imagined one.

Stages that remember something between steps live in `state`.
"""
