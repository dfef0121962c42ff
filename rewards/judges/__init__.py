"""Models that judge: which of two pictures is better, verdicts on texts, what they are asked, servers, stored answers,
win rates.

Rules without a model live with their modality.
"""
