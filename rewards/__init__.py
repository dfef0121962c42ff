"""Scores of what was sampled, in rooms by modality: functions of outputs and prompts, never of the policy.

Whatever needs the policy happens in the rollout, and reaches a reward as a column.
"""
